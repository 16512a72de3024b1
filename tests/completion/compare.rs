//! Where the processor and completion differ.

use std::fmt::Write as _;

use iced_x86::{Formatter, IntelFormatter, OpKind};

use crate::case::{Case, Outcome, Raised};
use crate::place::{DATA, PAGE, READ_ONLY};
use crate::vectors::Layout;

/// The six arithmetic flags, direction and alignment check.
const FLAGS: u64 = 0x4_0cd5;
const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const PAGE_FAULT: u8 = 14;
const ERROR_PRESENT: u32 = 1 << 0;
const ERROR_USER: u32 = 1 << 2;

/// Everything in which the two outcomes differ, for people.
pub fn differences(
    layout: &Layout,
    case: &Case,
    native: &mut Outcome,
    completed: &mut Outcome,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |name: &str, one: u64, other: u64| {
        if one != other {
            found.push(format!("{name}: {one:#x} natively, {other:#x} completed"));
        }
    };
    for (name, (one, other)) in NAMES.iter().zip(native.general.iter().zip(&completed.general)) {
        compare(name, *one, *other);
    }
    compare("rflags", native.flags & FLAGS, completed.flags & FLAGS);
    compare("rip", native.rip, completed.rip);
    let raised =
        [native.raised, completed.raised].map(|raised| raised.map(|raised| comparable(case, raised)));
    if raised[0] != raised[1] {
        found.push(format!("raised: {:x?} natively, {:x?} completed", raised[0], raised[1]));
    }
    layout.settle(&mut completed.vectors);
    if native.raised.is_some()
        && case.instruction.is_vsib()
        && case.instruction.op0_kind() == OpKind::Register
    {
        // What lies beyond the vector length becomes 0 when the gather ends. If it is interrupted before, the manuals
        // say nothing, and the processor has cleared it in some cases.
        let register = case.instruction.op0_register();
        for part in layout.beyond(register) {
            native.vectors[part.clone()].copy_from_slice(&completed.vectors[part]);
        }
    }
    found.extend(layout.differences(&native.vectors, &completed.vectors));
    if native.data == completed.data {
        return found;
    }
    let pairs = native.data.iter().zip(&completed.data).zip(DATA..);
    let bytes: Vec<_> = pairs.filter(|((one, other), _)| one != other).collect();
    if let Some((_, first)) = bytes.first() {
        let mut text = format!("{} bytes of memory, from {first:#x} on:", bytes.len());
        for ((one, other), at) in bytes.iter().take(16) {
            let _ = write!(text, " {at:#x}: {one:02x} natively, {other:02x} completed;");
        }
        found.push(text);
    }
    found
}

/// An exception without what must differ: this process always runs at level 3.
fn comparable(case: &Case, raised: Raised) -> Raised {
    let paging = raised.vector == PAGE_FAULT;
    let level = if case.privilege == 3 { 0 } else { ERROR_USER };
    // Elsewhere this process, or its kernel, may have something mapped that the guest has not.
    let elsewhere =
        if (DATA - PAGE..READ_ONLY + 2 * PAGE).contains(&raised.address) { 0 } else { ERROR_PRESENT };
    let hidden = level | elsewhere;
    Raised {
        vector: raised.vector,
        error: if paging { raised.error & !hidden } else { 0 },
        address: if paging { raised.address } else { 0 },
    }
}

/// The case, so that it can be found again and understood.
pub fn describe(case: &Case) -> String {
    let mut name = String::new();
    IntelFormatter::new().format(&case.instruction, &mut name);
    let bytes: Vec<_> = case.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut text = format!(
        "{name} ({:?}, bytes {}, seed {:#x}, privilege {}, at {:#x}",
        case.instruction.code(),
        bytes.join(" "),
        case.seed,
        case.privilege,
        case.rip
    );
    if let Some(target) = case.target {
        let _ = write!(text, ", operand at {target:#x}");
    }
    let _ = write!(text, ", rflags {:#x}", case.flags);
    for (name, value) in NAMES.iter().zip(&case.general) {
        let _ = write!(text, ", {name} {value:#x}");
    }
    text + ")"
}
