# What runs in ring 0 after the start: interrupt handlers, exception entries, and the functions that ring 3 calls
# through the gate. All of it is short, because ring 0 may be interpreted, and uses no vector registers.

.set APIC_END_OF_INTERRUPT, 0xfee000b0
.set GENERAL_PROTECTION, 13

.set SERIAL_DATA, 0x3f8
.set SERIAL_LINE_STATUS, 0x3fd
.set SERIAL_MODEM_STATUS, 0x3fe
.set SERIAL_DATA_READY, 1

.section .text.entry, "ax", @progbits

# --- Interrupts: take the time, count, acknowledge.

timer_interrupt:
    push rax
    push rdx
    rdtsc
    shl rdx, 32
    or rax, rdx
    mov [timer_fired_at], rax
    inc qword ptr [timer_ticks]
    mov eax, APIC_END_OF_INTERRUPT
    mov dword ptr [rax], 0
    pop rdx
    pop rax
    iretq

serial_interrupt:
    push rax
    mov byte ptr [serial_wants], 1
    inc qword ptr [serial_interrupts]
    mov eax, APIC_END_OF_INTERRUPT
    mov dword ptr [rax], 0
    pop rax
    iretq

device_interrupt:
    push rax
    inc qword ptr [device_interrupts]
    mov eax, APIC_END_OF_INTERRUPT
    mov dword ptr [rax], 0
    pop rax
    iretq

other_interrupt:
    push rax
    inc qword ptr [other_interrupts]
    mov eax, APIC_END_OF_INTERRUPT
    mov dword ptr [rax], 0
    pop rax
    iretq

spurious_interrupt:
    iretq

# --- Exceptions: save everything, report in ring 3 (traps.rs, `Frame` is this layout).

.macro exception_without_code vector
exception_\vector:
    push 0
    push \vector
    jmp exception
.endm

.macro exception_with_code vector
exception_\vector:
    push \vector
    jmp exception
.endm

.irp vector, 0,1,2,3,4,5,6,7,9,15,16,18,19,20,22,23,24,25,26,27,28,31
    exception_without_code \vector
.endr
.irp vector, 8,10,11,12,14,17,21,29,30
    exception_with_code \vector
.endr

# `hlt` in ring 3 faults; at one known place it means "call the ring 0 function in RAX". (On some hosts neither
# `int` nor `syscall` of ring 3 arrives where it should; faults do.)
exception_13:
    cmp qword ptr [rsp + 8], offset gate_instruction
    jne 1f
    add rsp, 8
    inc qword ptr [rsp]                 # continue behind the one-byte `hlt`
    call rax
    iretq
1:  push GENERAL_PROTECTION

exception:
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rbp
    push rdi
    push rsi
    push rdx
    push rcx
    push rbx
    push rax
    mov rax, cr2
    push rax
    mov rdi, rsp
    push RING3_DATA
    push offset fault_stack_end
    push RFLAGS_IOPL3
    push RING3_CODE
    push offset exception_in_ring3
    iretq

exception_in_ring3:
    cld
    call exception_taken
    ud2

# --- Ring 3's side of the gate: gate(function, first, second, third) -> RAX.

.globl gate
gate:
    mov rax, rdi
    mov rdi, rsi
    mov rsi, rdx
    mov rdx, rcx
gate_instruction:
    hlt
    ret

# --- Ring 0 functions for the gate: arguments in RDI, RSI, RDX; the stack holds the return address and then the
# frame of the fault: RIP, CS, RFLAGS, RSP, SS.

.globl ring0_nothing
ring0_nothing:
    ret

.globl ring0_enable_interrupts
ring0_enable_interrupts:
    or qword ptr [rsp + 24], 0x200
    ret

.globl ring0_disable_interrupts
ring0_disable_interrupts:
    and qword ptr [rsp + 24], ~0x200
    ret

# Sleeps until an interrupt, unless the byte at RDI says that there is something to do already.
.globl ring0_idle
ring0_idle:
    cmp byte ptr [rdi], 0
    jne 1f
    sti
    hlt
    cli
1:  ret

# Writes RDX bytes at RSI to the port RDI.
.globl ring0_write_run
ring0_write_run:
    mov rcx, rdx
    mov edx, edi
    rep outsb
    ret

# Reads what the serial port has received, up to RSI bytes, to RDI. Returns the count, and in the upper half the
# modem status from before.
.globl ring0_receive
ring0_receive:
    mov edx, SERIAL_MODEM_STATUS
    in al, dx
    movzx r8d, al
    shl r8, 32
    xor ecx, ecx
1:  cmp rcx, rsi
    je 2f
    mov edx, SERIAL_LINE_STATUS
    in al, dx
    test al, SERIAL_DATA_READY
    jz 2f
    mov edx, SERIAL_DATA
    in al, dx
    mov [rdi + rcx], al
    inc rcx
    jmp 1b
2:  lea rax, [r8 + rcx]
    ret

# Writes zeros to port 0x80 RDI times, for measuring.
.globl ring0_port_loop
ring0_port_loop:
    xor eax, eax
1:  out 0x80, al
    dec rdi
    jnz 1b
    ret

.globl ring0_cpuid
ring0_cpuid:
    mov r8, rdx
    mov r9, rbx
    mov eax, edi
    mov ecx, esi
    cpuid
    mov [r8], eax
    mov [r8 + 4], ebx
    mov [r8 + 8], ecx
    mov [r8 + 12], edx
    mov rbx, r9
    ret

# `cpuid` RDI times, for measuring.
.globl ring0_cpuid_loop
ring0_cpuid_loop:
    mov r9, rbx
1:  xor eax, eax
    cpuid
    dec rdi
    jnz 1b
    mov rbx, r9
    ret

.globl ring0_read_msr
ring0_read_msr:
    mov ecx, edi
    rdmsr
    shl rdx, 32
    or rax, rdx
    ret

.globl ring0_read_control
ring0_read_control:
    mov rax, cr0
    mov [rdi], rax
    mov rax, cr3
    mov [rdi + 8], rax
    mov rax, cr4
    mov [rdi + 16], rax
    ret

# Two instructions RDI times; also called without the gate, to compare.
.globl count_down
count_down:
    dec rdi
    jnz count_down
    ret

.globl ring0_undefined
ring0_undefined:
    popcnt rax, rdi
    ret

.globl ring0_breakpoint
ring0_breakpoint:
    int3
    ret

.globl ring0_triple_fault
ring0_triple_fault:
    lidt [no_interrupts]
    ud2

.globl ring0_halt
ring0_halt:
    cli
1:  hlt
    jmp 1b

no_interrupts:
    .word 0
    .quad 0

# --- Leaving a piece of work from wherever it faulted (traps.rs, `guarded`).

# guarded_call(function, argument): returns when the function does, or when it faulted.
.globl guarded_call
guarded_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push qword ptr [guard]
    mov [guard], rsp
    mov rax, rdi
    mov rdi, rsi
    call rax
1:  pop qword ptr [guard]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

.globl leave_guarded_call
leave_guarded_call:
    mov rsp, [guard]
    jmp 1b
