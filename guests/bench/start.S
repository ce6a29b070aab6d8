/*
 * Entry of the benchmark guest: a Multiboot 1 image that goes to long mode with the first 4 GiB mapped
 * one to one by 2 MiB pages, and calls bench_main(command line). Also the interrupt entries that the
 * loops of bench.c measure.
 */
#include "../long_mode.inc"

        .section .multiboot, "ax"
        .align 4
        .long   0x1BADB002, 0x00000003, -(0x1BADB002 + 0x00000003)
        .code32
        jmp     _start                  /* entry of the flat image, boot.S */

        .section .text
        .code32
        .globl  _start
_start:
        cli
        mov     $stack_top, %esp
        mov     %ebx, info
        map_one_to_one pml4, pdpt, pd
        go_long pml4, gdt_pointer
        mov     $stack_top, %rsp
        mov     info(%rip), %edi
        call    bench_main
3:      hlt
        jmp     3b

        /* A page fault: go on three bytes further, behind the faulting mov (%rdi), %rax. */
        .globl  page_fault_entry
page_fault_entry:
        add     $8, %rsp
        addq    $3, (%rsp)
        iretq

        .globl  int80_entry
int80_entry:
        iretq

        .globl  fault_once
fault_once:
        .byte   0x48, 0x8b, 0x07
        ret

        .section .data
        .align 8
gdt:    .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
info:   .long   0

        .section .bss
        .align 4096
        .globl  pml4
pml4:   .skip   4096
pdpt:   .skip   4096
pd:     .skip   4 * 4096
        .skip   16384
stack_top:
        .section .note.GNU-stack, "", @progbits
