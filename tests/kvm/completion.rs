//! Instructions that a KVM may be unable to run in ring 0, completed by hand where it is, on the real processor
//! state. On a host whose KVM runs them all nothing is completed, and the guests have to end the same way.

use lodger::hv::kvm::{KvmVcpu, KvmVm};
use lodger::hv::{Direction, Exit, Hypervisor, Vcpu, Vm};
use lodger::memory::{GuestMemory, Layout, Options};
use lodger::x86::complete::complete;
use lodger::x86::cpuid::{self, VcpuIdentity};

use crate::support::{
    CODE, DATA, ENDS_WITHIN, kvm, long_mode, machine_code, put, read_u64, within, write_tables,
};

/// More than any of these guests needs.
const MOST_EXITS: u32 = 1000;

/// A processor in ring 0 and its memory.
struct Bench {
    vcpu: KvmVcpu,
    _vm: KvmVm,
    memory: GuestMemory,
    completed: Vec<String>,
}

impl Bench {
    fn new(code: &[u8], handlers: &[(u8, u64)]) -> Self {
        let kvm = kvm();
        let vm = kvm.create_vm().expect("a machine can be created");
        let layout = Layout::new(2 << 20, cpuid::host_address_bits()).expect("the size is fine");
        let memory = GuestMemory::map(layout, Options::default()).expect("memory can be mapped");
        for (slot, (region, host)) in (0..).zip(memory.host_regions()) {
            // SAFETY: the machine is dropped before its memory.
            unsafe { vm.map_memory(slot, region.start, host, region.size) }.expect("KVM takes the memory");
        }
        vm.create_interrupt_controller().expect("interrupt controllers can be created");
        write_tables(&memory, handlers);
        put(&memory, CODE, code);
        let vcpu = vm.create_vcpu(0).expect("a processor");
        let identity = VcpuIdentity { tsc_khz: vcpu.tsc_khz(), ..VcpuIdentity::single(0) };
        let features = kvm.supported_cpuid().expect("KVM says what it can do");
        vcpu.set_cpuid(&cpuid::guest_cpuid(&features, identity)).expect("KVM takes the description");
        let (general, special) = long_mode(&vcpu.special_registers().unwrap(), 0);
        vcpu.set_special_registers(&special).expect("the state is one that a processor can be in");
        vcpu.set_registers(&general).unwrap();
        Self { vcpu, _vm: vm, memory, completed: Vec::new() }
    }

    /// Runs until the guest writes to the port that ends it; returns what it wrote.
    fn run(mut self) -> Self {
        for _ in 0..MOST_EXITS {
            match self.vcpu.run().expect("KVM runs the guest") {
                Exit::Pio(pio) if pio.direction == Direction::Write && pio.port == 0xf4 => return self,
                Exit::InternalError(_) => {
                    let done = complete(&self.vcpu, &self.memory).expect("registers can be read and set");
                    let done = done.unwrap_or_else(|beyond| panic!("{beyond}"));
                    self.completed.push(format!("{:?}", done.mnemonic));
                }
                Exit::Interrupted => {}
                other => panic!("{other:?}, after {:?}", self.completed),
            }
        }
        panic!("too many exits: {:?}", self.completed);
    }

    fn data<const N: usize>(&self) -> [u64; N] {
        std::array::from_fn(|index| read_u64(&self.memory, DATA + index as u64 * 8))
    }
}

fn finish(code: &'static [u8], handlers: &'static [(u8, u64)]) -> Bench {
    within(ENDS_WITHIN, move || Bench::new(code, handlers).run())
}

#[test]
fn a_breakpoint_reaches_its_handler_and_returns_behind_it() {
    let code = machine_code!(
        "mov ebx, 0x180000",
        "int3",
        "mov qword ptr [rbx + 8], 2",
        "out 0xf4, al",
        ".balign 256",
        "mov rax, [rsp]",
        "mov [rbx], rax",
        "iretq",
    );
    let bench = finish(code, &[(3, CODE + 0x100)]);
    assert_eq!(bench.data(), [CODE + 6, 2]);
}

#[test]
fn general_registers_flags_and_memory_end_right() {
    let code = machine_code!(
        "mov ebx, 0x180000",
        "mov eax, 0xf0f0",
        "popcnt rcx, rax",
        "mov [rbx], rcx",
        "stac",
        "pushfq",
        "pop [rbx + 8]",
        "clac",
        "pushfq",
        "pop [rbx + 16]",
        "mov eax, 1",
        "xor edx, edx",
        "crc32 rdx, rax",
        "mov [rbx + 24], rdx",
        "xor edx, edx",
        "xor eax, eax",
        "mov rdi, rbx",
        "mov ebx, 5",
        "mov ecx, 6",
        "lock cmpxchg16b [rdi + 32]",
        "sete [rdi + 48]",
        "out 0xf4, al",
    );
    let [bits, with_ac, without_ac, crc, low, high, exchanged] = finish(code, &[]).data();
    assert_eq!(bits, 8);
    assert_eq!((with_ac >> 18 & 1, without_ac >> 18 & 1), (1, 0));
    let mut expected = 0_u64;
    // SAFETY: every processor with which this test makes sense has it; the guest has executed it.
    unsafe { std::arch::asm!("crc32 {}, {}", inout(reg) expected, in(reg) 1_u64) };
    assert_eq!(crc, expected);
    assert_eq!((low, high, exchanged), (5, 6, 1));
}

#[test]
fn vector_registers_live_on_from_one_instruction_to_the_next() {
    let code = machine_code!(
        "mov ebx, 0x180000",
        "mov dword ptr [rbx + 0x100], 0x9fc0",
        "fninit",
        "fwait",
        "ldmxcsr [rbx + 0x100]",
        "stmxcsr [rbx]",
        "movq xmm0, rbx",
        "paddd xmm0, xmm0",
        "paddd xmm0, xmm0",
        "movq [rbx + 8], xmm0",
        "pxor xmm1, xmm1",
        "aesenc xmm1, xmm1",
        "movq [rbx + 16], xmm1",
        // Enables AVX.
        "mov rax, cr4",
        "or eax, 0x40000",
        "mov cr4, rax",
        "xor ecx, ecx",
        "xor edx, edx",
        "mov eax, 7",
        "xsetbv",
        "mov dword ptr [rbx + 0x200], 0x3fc00000",
        "vbroadcastss ymm2, [rbx + 0x200]",
        "vaddps ymm3, ymm2, ymm2",
        "vextractf128 xmm4, ymm3, 1",
        "vmovq rax, xmm4",
        "mov [rbx + 24], rax",
        "out 0xf4, al",
    );
    let [mxcsr, sum, cipher, doubled] = finish(code, &[]).data();
    assert_eq!(mxcsr, 0x9fc0);
    assert_eq!(sum, DATA * 4);
    // SubBytes of zeroes is 0x63 everywhere, which MixColumns leaves alone.
    assert_eq!(cipher, 0x6363_6363_6363_6363);
    assert_eq!(doubled, 0x4040_0000_4040_0000);
}

#[test]
fn a_fault_within_a_completed_instruction_reaches_its_handler() {
    let code = machine_code!(
        "mov ebx, 0x180000",
        // Not canonical.
        "mov rdi, 0x800000000000",
        "popcnt rax, [rdi]",
        ".balign 256",
        "mov rax, [rsp]",
        "mov [rbx], rax",
        "mov rax, [rsp + 8]",
        "mov [rbx + 8], rax",
        "out 0xf4, al",
    );
    let [error, rip] = finish(code, &[(13, CODE + 0x100)]).data();
    assert_eq!((error, rip), (0, CODE + 15));
}

#[test]
fn a_page_fault_within_a_completed_instruction_tells_address_and_reason() {
    let code = machine_code!(
        "mov ebx, 0x180000",
        // Behind what the tables map.
        "mov rdi, 0x200000123",
        "lock cmpxchg16b [rdi + 13]",
        ".balign 256",
        "mov rax, cr2",
        "mov [rbx], rax",
        "mov rax, [rsp]",
        "mov [rbx + 8], rax",
        "mov rax, [rsp + 8]",
        "mov [rbx + 16], rax",
        "out 0xf4, al",
    );
    let [address, error, rip] = finish(code, &[(14, CODE + 0x100)]).data();
    assert_eq!((address, error, rip), (0x2_0000_0130, 2, CODE + 15));
}
