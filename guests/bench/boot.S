/*
 * Boot sector for emulators that take a disk, not a kernel (Bochs): loads the flat benchmark guest that follows
 * it on the disk to 1 MiB and enters it as a Multiboot loader would, in flat 32-bit protected mode.
 *
 * Who makes the disk fills in two fields: the number of sectors of the guest (at most 127) and its command line.
 *
 *   0x7c00 this sector   0x7e00 Multiboot information   0x10000 what the BIOS reads   0x100000 the guest
 */
        .set    BUFFER, 0x10000
        .set    INFO, 0x7e00
        .set    GUEST, 0x100000
        .set    CLEARED, 0x100000       /* bytes from GUEST: the image and its .bss */
        .set    ENTRY, GUEST + 12       /* a jump behind the Multiboot header, start.S */

        .section .text
        .code16
        .globl  _start
_start:
        cli
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        ljmp    $0, $1f
1:      mov     sectors, %ax
        mov     %ax, packet + 2
        mov     $packet, %si
        mov     $0x42, %ah
        int     $0x13
        jc      failed
        in      $0x92, %al
        or      $2, %al
        and     $0xfe, %al
        out     %al, $0x92
        lgdt    gdt_pointer
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmp    $8, $protected
failed: hlt
        jmp     failed

        .code32
protected:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        cld
        xor     %eax, %eax
        mov     $GUEST, %edi
        mov     $CLEARED / 4, %ecx
        rep stosl
        mov     $INFO, %edi
        mov     $22, %ecx
        rep stosl
        movzwl  sectors, %ecx
        shl     $7, %ecx
        mov     $BUFFER, %esi
        mov     $GUEST, %edi
        rep movsl
        movl    $4, INFO                /* the command line is given */
        movl    $cmdline, INFO + 16
        mov     $0x2BADB002, %eax
        mov     $INFO, %ebx
        mov     $ENTRY, %ecx
        jmp     *%ecx

        .align 8
gdt:    .quad   0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
        .align 4
packet: .byte   16, 0
        .word   0, 0, BUFFER >> 4
        .quad   1

        .org    0x180                   /* scripts/bench-guest knows these two offsets */
sectors:
        .word   0
cmdline:
        .org    0x1fe
        .word   0xaa55
        .section .note.GNU-stack, "", @progbits
