//! Guest code, assembled into this program.

/// The machine code of the given lines of assembly (Intel syntax, 64-bit unless they say `.code16`), which is
/// position-independent as long as it jumps and calls by numeric labels only. It starts at a multiple of 256,
/// so that `.balign 256` puts a handler at a known distance from the start.
macro_rules! machine_code {
    ($($line:expr),+ $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: the lines are jumped over, so that only the addresses around them are taken; between these
        // lies this program's own code, which is never changed or unloaded.
        unsafe {
            std::arch::asm!(
                "lea {start}, [rip + 771f]",
                "lea {end}, [rip + 772f]",
                "jmp 772f",
                ".balign 256",
                "771:",
                $($line,)+
                ".code64",
                "772:",
                start = out(reg) start,
                end = out(reg) end,
                options(nomem, nostack, preserves_flags),
            );
            let code: &'static [u8] = std::slice::from_raw_parts(start, end.offset_from_unsigned(start));
            code
        }
    }};
}

pub(crate) use machine_code;
