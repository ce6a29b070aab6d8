/*
 * Real mode: a Multiboot image that leaves protected mode, then works with segments, string and port
 * instructions, decimal adjustments, far calls and interrupt returns, and prints what came of it.
 * The 16-bit part is copied to 0x8000 and runs there.
 */
        .section .multiboot, "a"
        .align 4
        .long   0x1BADB002, 0x00000003, -(0x1BADB002 + 0x00000003)

        .section .text
        .code32
        .globl  _start
_start:
        cli
        mov     $blob, %esi
        mov     $0x8000, %edi
        mov     $blob_end - blob, %ecx
        cld
        rep movsb
        lgdt    gdt_pointer
        ljmp    $0x08, $0x8000

        /* 16-bit from here on; addresses are relative to 0x8000. */
        .macro  say text
        mov     $(\text - blob + 0x8000), %si
        call    print
        .endm
        .code16
blob:
        mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     %cr0, %eax
        and     $0xfffffffe, %eax
        mov     %eax, %cr0
        ljmp    $0, $(0x8000 + real - blob)
real:
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7000, %sp
        lidtl   0x8000 + ivt_pointer - blob
        say     hello

        /* Segments: one byte, two names for it. */
        mov     $0x2000, %ax
        mov     %ax, %es
        movw    $0xbeef, %es:0x10
        mov     $0x2001, %ax
        mov     %ax, %fs
        mov     %fs:0, %ax
        say     segments
        call    hex

        /* Arithmetic of 8, 16 and 32 bits, with the carry travelling. */
        mov     $1000, %cx
        mov     $0x1234, %ax
        xor     %dx, %dx
1:      add     $0x4567, %ax
        adc     %ax, %dx
        rol     $3, %dx
        mul     %dx
        xor     %cx, %ax
        loop    1b
        xor     %dx, %ax
        say     arithmetic
        call    hex
        mov     $0x89abcdef, %eax
        mov     $0x12345, %ebx
        mul     %ebx
        xor     %edx, %eax
        mov     $977, %ecx
        xor     %edx, %edx
        div     %ecx
        mov     %dx, %ax
        say     wide
        call    hex

        /* Decimal adjustments. */
        mov     $0x42, %al
        sub     $0x17, %al
        das
        mov     %al, %bl
        mov     $0x0307, %ax
        aad
        mov     %al, %bh
        mov     %bx, %ax
        say     decimal
        call    hex

        /* Strings, backwards too. */
        mov     $0x3000, %ax
        mov     %ax, %es
        xor     %di, %di
        mov     $0x100, %cx
        mov     $0xa5, %al
        cld
        rep stosb
        push    %ds
        push    %es
        pop     %ds
        std
        mov     $0xff, %si
        mov     $0x1ff, %di
        mov     $0x80, %cx
        rep movsb
        cld
        xor     %si, %si
        mov     $0x200, %cx
        xor     %bx, %bx
2:      lodsb
        xor     %ah, %ah
        add     %ax, %bx
        loop    2b
        pop     %ds
        mov     %bx, %ax
        say     strings
        call    hex

        /* An interrupt handler, entered as the processor would (an interpreting KVM loops on the
         * instruction itself), that adds to AX; and a far call. */
        movw    $(0x8000 + handler - blob), 0x80 * 4
        movw    $0, 0x80 * 4 + 2
        mov     $0x0100, %ax
        pushf
        lcall   *0x200
        pushf
        lcall   *0x200
        lcall   $0, $(0x8000 + far_function - blob)
        say     calls
        call    hex

        say     bye
        xor     %eax, %eax
        mov     $0xf4, %dx
        outl    %eax, %dx
3:      cli
        hlt
        jmp     3b

handler:
        add     $0x11, %ax
        iret

far_function:
        add     $0x1000, %ax
        lret

        /* Print the text at SI. */
print:
        push    %ax
        push    %dx
4:      lodsb
        test    %al, %al
        jz      5f
        mov     $0x3f8, %dx
        outb    %al, %dx
        jmp     4b
5:      pop     %dx
        pop     %ax
        ret

        /* Print AX as four digits and a new line. */
hex:
        mov     %ax, %bx
        mov     $4, %cx
6:      rol     $4, %bx
        mov     %bl, %al
        and     $0xf, %al
        cmp     $10, %al
        jb      7f
        add     $('a' - '0' - 10), %al
7:      add     $'0', %al
        mov     $0x3f8, %dx
        outb    %al, %dx
        loop    6b
        mov     $'\n', %al
        outb    %al, %dx
        ret

hello:  .asciz  "real mode guest\n"
segments:
        .asciz  "segments=0x"
arithmetic:
        .asciz  "arithmetic=0x"
wide:   .asciz  "wide=0x"
decimal:
        .asciz  "decimal=0x"
strings:
        .asciz  "strings=0x"
calls:  .asciz  "calls=0x"
bye:    .asciz  "real: done\n"
        .align 4
ivt_pointer:
        .word   0x3ff
        .long   0
blob_end:

        .section .data
        .align 8
        /* 16-bit code and data at base 0, 64 KiB. */
gdt:    .quad   0, 0x00009b000000ffff, 0x000093000000ffff
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
        .section .note.GNU-stack, "", @progbits
