//! bzImages on the real processor: what is unpacked runs, and so does an image's own code in both modes.

use lodger::boot::Entry;
use lodger::vm::Config;

use crate::support::{machine_code, machine_with};

#[path = "../images/bz_image.rs"]
#[allow(dead_code, reason = "other tests need the rest")]
mod bz_image;

use bz_image::{PACKED, bz_image, field};

/// Leaves with the given status.
const OTHER: &[u8] = &[0xb0, 99, 0xe6, 0xf4];

/// Boots `image` in 2 MiB; the status with which it ends.
fn status(image: &[u8], change: impl FnOnce(&mut Config)) -> u8 {
    let (machine, _) = machine_with(image, |config| {
        config.flat = None;
        change(config);
    });
    machine.run().status()
}

#[test]
fn the_kernel_in_every_format_runs_whichever_way_it_is_entered() {
    for (name, payload) in PACKED {
        let image = bz_image(OTHER, OTHER, payload);
        for entry in [Entry::Auto, Entry::Pvh, Entry::Linux64] {
            assert_eq!(status(&image, |config| config.entry = entry), 42, "{name}, {entry}");
        }
    }
}

#[test]
fn an_images_own_code_finds_in_64_bit_mode_what_the_boot_protocol_promises() {
    // Leaves with 64 if RSI leads to the boot parameters: the header's mark, the place of the code, which is
    // where it runs, the loader's number, and a command line.
    let code = machine_code!(
        "lea rbx, [rip - 7 - 0x200]",
        "mov al, 1",
        "cmp dword ptr [rsi + 0x202], 0x53726448",
        "jne 3f",
        "mov al, 2",
        "cmp [rsi + 0x214], ebx",
        "jne 3f",
        "mov al, 3",
        "cmp byte ptr [rsi + 0x210], 0xff",
        "jne 3f",
        "mov al, 4",
        "mov ecx, [rsi + 0x228]",
        "cmp dword ptr [rcx], 0x65697571",
        "jne 3f",
        "mov al, 5",
        "pushfq",
        "pop rcx",
        "test ecx, 0x200",
        "jnz 3f",
        "mov al, 64",
        "3: out 0xf4, al",
        "hlt",
    );
    let image = bz_image(OTHER, code, PACKED[0].1);
    let own = |config: &mut Config| {
        config.entry = Entry::Image;
        config.cmdline = Some("quiet".to_owned());
    };
    assert_eq!(status(&image, own), 64);
    // The same where there is no payload that could be unpacked.
    let image = bz_image(OTHER, code, b"\x89LZO");
    assert_eq!(status(&image, |config| config.cmdline = Some("quiet".to_owned())), 64);
    // And somewhere else, where only the second mebibyte is there.
    let mut image = bz_image(OTHER, code, b"\x89LZO");
    image[field::PREF_ADDRESS..][..8].copy_from_slice(&(1_u64 << 24).to_le_bytes());
    image[field::KERNEL_ALIGNMENT..][..4].copy_from_slice(&0x1000_u32.to_le_bytes());
    assert_eq!(status(&image, |config| config.cmdline = Some("quiet".to_owned())), 64);
}

#[test]
fn an_images_own_code_finds_in_32_bit_mode_what_the_boot_protocol_promises() {
    // Position-independent, written for 32-bit mode: ESI leads to the boot parameters, EBX, EBP and EDI are 0,
    // paging and interrupts are off, DS, ES and SS are flat and have the selectors that the protocol names.
    let code = machine_code!(
        ".code32",
        "mov al, 1",
        "cmp dword ptr [esi + 0x202], 0x53726448",
        "jne 3f",
        "mov al, 2",
        "or ebx, ebp",
        "or ebx, edi",
        "jnz 3f",
        "mov al, 3",
        "mov ecx, cr0",
        "shr ecx, 31",
        "jnz 3f",
        "mov al, 4",
        "mov ecx, cs",
        "cmp ecx, 0x10",
        "jne 3f",
        "mov ecx, ds",
        "cmp ecx, 0x18",
        "jne 3f",
        "mov ecx, ss",
        "cmp ecx, 0x18",
        "jne 3f",
        "mov al, 5",
        "cmp dword ptr [esi + 0x214], 0x100000",
        "jne 3f",
        // A stack of its own: the protocol promises none.
        "lea esp, [esi + 0x1e8]",
        "mov al, 6",
        "pushfd",
        "pop ecx",
        "test ecx, 0x200",
        "jnz 3f",
        "mov al, 32",
        "3: out 0xf4, al",
        "hlt",
    );
    let mut image = bz_image(code, OTHER, PACKED[0].1);
    image[field::XLOADFLAGS] = 0;
    assert_eq!(status(&image, |config| config.entry = Entry::Image), 32);
}
