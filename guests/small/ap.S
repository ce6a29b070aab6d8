/* Where other processors start: real mode at 0x8000, then protected, then long mode, then C. */
        .section .text
        .code16
        .globl  ap_begin, ap_end
ap_begin:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        lgdtl   0x8000 + ap_gdt_pointer - ap_begin
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $0x18, $(0x8000 + ap_protected - ap_begin)
        .align 8
ap_gdt_pointer:
        .word   47
        .long   boot_gdt
        .code32
ap_protected:
        mov     $0x10, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     ap_stack, %esp
        mov     $enter_long, %eax
        call    *%eax
        .code64
        mov     ap_stack, %rsp
        movabs  $ap_main, %rax
        call    *%rax
1:      hlt
        jmp     1b
ap_end:
        .section .note.GNU-stack, "", @progbits
