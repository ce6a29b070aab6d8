/*
 * Entry of the small guests: a Multiboot 1 image that goes to long mode with the first 4 GiB mapped one to
 * one by 2 MiB pages, and calls guest_main(information). Returning ends the guest as content.
 */
#include "../long_mode.inc"

        .section .multiboot, "a"
        .align 4
        .long   0x1BADB002, 0x00000003, -(0x1BADB002 + 0x00000003)

        .section .text
        .code32
        .globl  _start
_start:
        cli
        mov     $boot_stack, %esp
        mov     %ebx, information
        map_one_to_one boot_pml4, boot_pdpt, boot_pd
        call    enter_long
        .code64
        mov     $boot_stack, %rsp
        mov     information(%rip), %edi
        call    guest_main
        mov     %eax, %edi
        call    guest_exit
3:      hlt
        jmp     3b

        /* From flat protected mode to long mode; returns in long mode. Used by every processor. */
        .code32
        .globl  enter_long
enter_long:
        pop     %esi
        go_long boot_pml4, boot_gdt_pointer
        jmp     *%rsi

        /* Entries of interrupts and exceptions: each keeps the caller's registers and calls C. */
        .macro  entry name, handler, has_code
        .globl  \name
\name:
        .if     \has_code == 0
        push    $0
        .endif
        push    %rax
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        mov     72(%rsp), %rdi
        lea     80(%rsp), %rsi
        cld
        call    \handler
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rax
        add     $8, %rsp
        iretq
        .endm

        .weak   on_page_fault, on_general_fault, on_invalid_opcode, on_divide_error, on_timer, on_pit, on_soft
        entry   page_fault_entry, on_page_fault, 1
        entry   general_fault_entry, on_general_fault, 1
        entry   invalid_opcode_entry, on_invalid_opcode, 0
        entry   divide_error_entry, on_divide_error, 0
        entry   timer_entry, on_timer, 0
        entry   pit_entry, on_pit, 0
        entry   soft_entry, on_soft, 0

        .section .data
        .align 8
        .globl  boot_gdt, boot_gdt_pointer
boot_gdt:
        .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
        .quad   0x00009b000000ffff, 0x000093000000ffff
boot_gdt_pointer:
        .word   . - boot_gdt - 1
        .long   boot_gdt
        .long   0
information:
        .long   0

        .section .bss
        .align 4096
        .globl  boot_pml4
boot_pml4:
        .skip   4096
boot_pdpt:
        .skip   4096
boot_pd:
        .skip   4 * 4096
        .skip   16384
boot_stack:
        .section .note.GNU-stack, "", @progbits
