//! What only ring 0 can do, done through the gate of traps.s.

use core::sync::atomic::AtomicBool;

/// A function of traps.s that is to run in ring 0.
type Ring0 = unsafe extern "C" fn();

unsafe extern "sysv64" {
    fn gate(function: Ring0, first: u64, second: u64, third: u64) -> u64;
}

unsafe extern "C" {
    fn ring0_nothing();
    fn ring0_enable_interrupts();
    fn ring0_disable_interrupts();
    fn ring0_idle();
    fn ring0_write_run();
    fn ring0_receive();
    fn ring0_port_loop();
    fn ring0_cpuid();
    fn ring0_cpuid_loop();
    fn ring0_read_msr();
    fn ring0_read_control();
    fn count_down();
    fn ring0_undefined();
    fn ring0_breakpoint();
    fn ring0_triple_fault();
    fn ring0_halt();
}

/// Control registers.
#[repr(C)]
#[derive(Default)]
pub struct Control {
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
}

/// There and back.
pub fn nothing() {
    // SAFETY: the function does nothing.
    unsafe { gate(ring0_nothing, 0, 0, 0) };
}

/// Lets interrupts in.
pub fn enable_interrupts() {
    // SAFETY: changes the interrupt flag of this ring; all handlers exist from the start.
    unsafe { gate(ring0_enable_interrupts, 0, 0, 0) };
}

/// Keeps interrupts out.
pub fn disable_interrupts() {
    // SAFETY: changes the interrupt flag of this ring.
    unsafe { gate(ring0_disable_interrupts, 0, 0, 0) };
}

/// Sleeps until an interrupt, unless `unless` is set already.
pub fn idle(unless: &AtomicBool) {
    // SAFETY: the function reads the byte.
    unsafe { gate(ring0_idle, unless.as_ptr() as u64, 0, 0) };
}

/// Writes all bytes to one port with a single instruction.
///
/// In ring 0 because of the hosts that interpret it: there an exit from ring 3 costs three times as much (26 and
/// 8 us were measured), since more has to be switched. On other hosts the gate costs next to nothing.
pub fn write_run(port: u16, bytes: &[u8]) {
    // SAFETY: the function reads exactly `bytes`.
    unsafe { gate(ring0_write_run, port.into(), bytes.as_ptr() as u64, bytes.len() as u64) };
}

/// Takes what the serial port has received: how many bytes, and the modem status from before. In ring 0 for the
/// same reason.
pub fn receive(into: &mut [u8]) -> (usize, u8) {
    // SAFETY: the function fills no more than `into`.
    let answer = unsafe { gate(ring0_receive, into.as_mut_ptr() as u64, into.len() as u64, 0) };
    (answer as u32 as usize, (answer >> 32) as u8)
}

/// Writes to port 0x80 many times.
pub fn port_loop(times: u64) {
    // SAFETY: the port only shows progress codes.
    unsafe { gate(ring0_port_loop, times.max(1), 0, 0) };
}

/// The guest's own view of a CPUID leaf as EAX, EBX, ECX, EDX. (In ring 3 some hosts show theirs.)
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut answer = [0; 4];
    // SAFETY: the function fills four words.
    unsafe { gate(ring0_cpuid, leaf.into(), subleaf.into(), (&raw mut answer) as u64) };
    answer
}

/// Executes `cpuid` many times.
pub fn cpuid_loop(times: u64) {
    // SAFETY: the function only changes registers that a call may change.
    unsafe { gate(ring0_cpuid_loop, times.max(1), 0, 0) };
}

/// Reads a model-specific register; faults where there is none of that number.
pub fn read_msr(number: u32) -> u64 {
    // SAFETY: the function only reads.
    unsafe { gate(ring0_read_msr, number.into(), 0, 0) }
}

/// Reads the control registers.
pub fn read_control() -> Control {
    let mut control = Control::default();
    // SAFETY: the function fills the structure, which has its layout.
    unsafe { gate(ring0_read_control, (&raw mut control) as u64, 0, 0) };
    control
}

/// Executes two instructions `times` times in ring 0.
pub fn count_in_ring0(times: u64) {
    // SAFETY: the function only counts a register down.
    unsafe { gate(count_down, times.max(1), 0, 0) };
}

/// Executes the same loop in ring 3.
pub fn count_in_ring3(times: u64) {
    // SAFETY: the function only counts down the register it takes its argument in.
    unsafe {
        let count_down = core::mem::transmute::<Ring0, unsafe extern "sysv64" fn(u64)>(count_down);
        count_down(times.max(1));
    }
}

/// Executes `popcnt` in ring 0: ordinary, but missing in some interpreters.
pub fn rare_instruction(value: u64) -> u64 {
    // SAFETY: the function only counts bits.
    unsafe { gate(ring0_undefined, value, 0, 0) }
}

/// Executes `int3` in ring 0.
pub fn breakpoint() {
    // SAFETY: raises an exception, which is reported.
    unsafe { gate(ring0_breakpoint, 0, 0, 0) };
}

/// Faults without any handler.
pub fn triple_fault() {
    // SAFETY: ends the machine, as asked.
    unsafe { gate(ring0_triple_fault, 0, 0, 0) };
}

/// Halts for ever, interrupts off.
pub fn halt() -> ! {
    loop {
        // SAFETY: ends the machine, as asked.
        unsafe { gate(ring0_halt, 0, 0, 0) };
    }
}
