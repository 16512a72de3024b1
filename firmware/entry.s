# Where the machine enters, and the tables it needs to get from there to ring 3.
#
# Everything here runs in ring 0, which some hosts interpret one instruction at a time: so all tables are data
# of the image, and each instruction left out brings the first line forward. Nothing in this file depends on
# memory that the loader did not fill.

.set TABLES, 0x100000           # linker.ld asserts both
.set CODE, 0x107000

.set RING0_CODE, 0x08
.set RING3_DATA, 0x10 + 3
.set RING3_CODE, 0x18 + 3
.set TASK, 0x20

.set EFER, 0xc0000080
.set EFER_LME, 0x100
.set CR0_PE_MP_ET_NE_WP_PG, 0x80010033
.set CR4_PAE_OSFXSR_OSXMMEXCPT, 0x620
.set RFLAGS_IOPL3, 0x3002

.set PRESENT_WRITABLE_USER, 0x27        # accessed already, so that no walk has to write
.set LARGE_PAGE, 0xe7                   # the same, dirty already
.set LARGE_PAGE_UNCACHED, 0xf7
.set FIRST_DEVICE_PAGE, 0xc0000000 >> 21

# XEN_ELFNOTE_PHYS32_ENTRY: where PVH loaders enter, in 32-bit protected mode.
.section .note.Xen, "a", @note
.balign 4
.long 4, 8, 18
.asciz "Xen"
.quad pvh_entry

.section .tables, "aw", @progbits
.balign 4096
.globl tables_start
tables_start:

# The first GiB and the one below 4 GiB, where the devices are; paging.rs adds what else is asked for.
.globl top_table
top_table:
    .quad directory_pointers + PRESENT_WRITABLE_USER
    .fill 511, 8, 0
directory_pointers:
    .quad low_directory + PRESENT_WRITABLE_USER, 0, 0, device_directory + PRESENT_WRITABLE_USER
    .fill 508, 8, 0
low_directory:
    .set page, 0
    .rept 512
    .quad page * 0x200000 + LARGE_PAGE
    .set page, page + 1
    .endr
device_directory:
    .set page, FIRST_DEVICE_PAGE
    .rept 512
    .quad page * 0x200000 + LARGE_PAGE_UNCACHED
    .set page, page + 1
    .endr

descriptors:
    .quad 0
    .quad 0x00af9b000000ffff            # 64-bit code, ring 0
    .quad 0x00cff3000000ffff            # data, ring 3
    .quad 0x00affb000000ffff            # 64-bit code, ring 3
    .word task_end - task - 1, (TABLES + (task - tables_start)) & 0xffff
    .byte (TABLES + (task - tables_start)) >> 16, 0x89, 0, 0
    .quad 0
descriptors_end:

descriptors_register:
    .word descriptors_end - descriptors - 1
    .quad descriptors

# What `iretq` takes to get to ring 3.
.balign 8
ring3_frame:
    .quad ring3_entry, RING3_CODE, RFLAGS_IOPL3, ring3_stack_end, RING3_DATA

.macro gate handler
    .word (CODE + (\handler - code_start)) & 0xffff, RING0_CODE
    .byte 0, 0x8e
    .word (CODE + (\handler - code_start)) >> 16
    .quad 0
.endm

.balign 16
interrupts:
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    gate exception_\vector
    .endr
    gate timer_interrupt                # 0x20
    .rept 3
    gate other_interrupt
    .endr
    gate serial_interrupt               # 0x24
    gate device_interrupt               # 0x25
    .rept 9
    gate other_interrupt
    .endr
    gate spurious_interrupt             # 0x2f
interrupts_end:

interrupts_register:
    .word interrupts_end - interrupts - 1
    .quad interrupts

# Of the task the stack that ring 0 starts with matters, and the bitmap of allowed ports: IOPL 3 should make it
# unnecessary, but there are hosts that lose the IOPL of a guest's ring 3 (measured) and ask the bitmap.
.balign 8
task:
    .long 0
    .quad ring0_stack_end
    .fill 0x66 - 12, 1, 0
    .word port_bitmap - task
port_bitmap:
    .fill 0x10000 / 8, 1, 0
    .byte 0xff
task_end:

.section .text.entry, "ax", @progbits
.globl code_start
code_start:

# Needs nothing but flat segments: the first sign of life comes before paging, and tells a machine that starts but
# cannot go on from one that never started. The instructions are the same in 32 and 64-bit code.
.macro print_first_line
    mov esi, offset first_line
    mov ecx, offset first_line_length
    mov edx, 0x3f8
    rep outsb
.endm

# PVH: 32-bit protected mode, flat segments, paging off, EBX = start_info.
.code32
.globl pvh_entry
pvh_entry:
    print_first_line
    mov eax, CR4_PAE_OSFXSR_OSXMMEXCPT
    mov cr4, eax
    mov eax, offset top_table
    mov cr3, eax
    mov ecx, EFER
    mov eax, EFER_LME
    xor edx, edx
    wrmsr
    mov eax, CR0_PE_MP_ET_NE_WP_PG
    mov cr0, eax
    lgdt [descriptors_register]
    xor ebp, ebp                        # entered by PVH
    .byte 0xea                          # far jump into 64-bit code
    .long to_ring3
    .word RING0_CODE

# The 64-bit Linux boot protocol: long mode already, RSI = zero page.
.code64
.globl linux_entry
linux_entry:
    cli
    mov rbx, rsi
    print_first_line
    mov eax, CR4_PAE_OSFXSR_OSXMMEXCPT
    mov cr4, rax
    mov eax, offset top_table
    mov cr3, rax
    mov eax, CR0_PE_MP_ET_NE_WP_PG
    mov cr0, rax
    lgdt [descriptors_register]
    mov ebp, 1                          # entered by the Linux protocol

to_ring3:
    lidt [interrupts_register]
    mov ax, TASK
    ltr ax
    mov esp, offset ring3_frame
    iretq

# From here on everything runs natively.
ring3_entry:
    mov rdi, rbx
    mov esi, ebp
    call guest_main
    ud2
