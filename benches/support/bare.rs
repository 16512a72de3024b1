//! The yardstick: a loop around `KVM_RUN` that does nothing but count exits and answer reads with zero.

use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_MMIO, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs, kvm_run,
    kvm_segment, kvm_sregs, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use lodger::hv::{Registers, Segment, SpecialRegisters};
use vmm_sys_util::eventfd::EventFd;

use super::guests::{self, Memory};

/// A machine of the least that KVM needs.
pub struct Bare {
    vcpu: VcpuFd,
    vm: VmFd,
    _memory: Mapping,
    doorbell: Option<EventFd>,
}

struct Mapping(*mut u8);

impl Memory for Mapping {
    fn write(&self, address: u64, bytes: &[u8]) {
        assert!(address + bytes.len() as u64 <= guests::MEMORY);
        // SAFETY: inside the mapping, as just checked, and the guest does not run yet.
        unsafe { self.0.add(address as usize).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }
}

impl Bare {
    /// A machine that runs `code` in the given ring.
    pub fn new(code: &[u8], ring: u8) -> Self {
        let mut bare = Self::without_doorbell(code, ring);
        let doorbell = EventFd::new(0).unwrap();
        let address = IoEventAddress::Pio(guests::DOORBELL.into());
        bare.vm.register_ioevent(&doorbell, &address, NoDatamatch).unwrap();
        bare.doorbell = Some(doorbell);
        bare
    }

    /// The same without a doorbell, whose registration takes milliseconds on some hosts.
    pub fn without_doorbell(code: &[u8], ring: u8) -> Self {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        // SAFETY: a fresh anonymous mapping; it is never unmapped.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                guests::MEMORY as usize,
                3,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(memory, libc::MAP_FAILED);
        let memory = Mapping(memory.cast());
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: guests::MEMORY,
            userspace_addr: memory.0 as u64,
        };
        // SAFETY: the memory stays mapped until the process ends.
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        vm.create_irq_chip().unwrap();
        vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() }).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        guests::load(&memory, code);
        let (general, special) = guests::state(&SpecialRegisters::default(), ring);
        vcpu.set_sregs(&kernel_sregs(vcpu.get_sregs().unwrap(), &special)).unwrap();
        vcpu.set_regs(&kernel_regs(&general)).unwrap();
        Self { vcpu, vm, _memory: memory, doorbell: None }
    }

    /// How long `exits` exits take.
    pub fn measure(&mut self, exits: u64) -> Duration {
        self.exit();
        let start = Instant::now();
        for _ in 0..exits {
            self.exit();
        }
        start.elapsed()
    }

    /// Runs the guest until it writes to the debug-exit port, and hands on what it prints, byte by byte.
    pub fn serve(&mut self, mut print: impl FnMut(u8)) {
        loop {
            self.vcpu.run().expect("the guest runs");
            let run = self.vcpu.get_kvm_run();
            assert_eq!(run.exit_reason, KVM_EXIT_IO);
            // SAFETY: as in `exit`.
            let (port, byte) = unsafe {
                let io = run.__bindgen_anon_1.io;
                (io.port, *std::ptr::from_ref(run).cast::<u8>().add(io.data_offset as usize))
            };
            match port {
                0x3f8 => print(byte),
                _ => return,
            }
        }
    }

    fn exit(&mut self) {
        self.vcpu.run().expect("the guest runs");
        let run = self.vcpu.get_kvm_run();
        // SAFETY: the exit reason tells which member of the union is filled; the data of a port access lies
        // inside the run area, at the offset the kernel gives.
        unsafe {
            match run.exit_reason {
                KVM_EXIT_IO => {
                    let io = run.__bindgen_anon_1.io;
                    if u32::from(io.direction) == KVM_EXIT_IO_IN {
                        let data =
                            std::ptr::from_mut::<kvm_run>(run).cast::<u8>().add(io.data_offset as usize);
                        data.write_bytes(0, usize::from(io.size));
                    }
                }
                KVM_EXIT_MMIO => run.__bindgen_anon_1.mmio.data = [0; 8],
                reason => panic!("exit reason {reason}"),
            }
        }
    }
}

fn kernel_regs(r: &Registers) -> kvm_regs {
    kvm_regs { rip: r.rip, rsp: r.rsp, rflags: r.rflags, ..Default::default() }
}

fn kernel_sregs(reset: kvm_sregs, s: &SpecialRegisters) -> kvm_sregs {
    let segment = |segment: &Segment| kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: 1,
        dpl: segment.dpl,
        db: segment.default_big.into(),
        s: 1,
        l: segment.long.into(),
        g: 1,
        ..Default::default()
    };
    let mut sregs = kvm_sregs { cr0: s.cr0, cr3: s.cr3, cr4: s.cr4, efer: s.efer, ..reset };
    sregs.cs = segment(&s.cs);
    let data = segment(&s.ds);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    (sregs.gdt.base, sregs.gdt.limit) = (s.gdt.base, s.gdt.limit);
    (sregs.idt.base, sregs.idt.limit) = (s.idt.base, s.idt.limit);
    sregs
}
