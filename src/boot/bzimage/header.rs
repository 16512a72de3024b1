//! The setup header of a bzImage: what is read from it, believed only where it can be true.
//!
//! Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header" and "Details of Header Fields". The structure
//! is linux-loader's.

use linux_loader::bootparam::{LOADED_HIGH, boot_params, setup_header};
use vm_memory::ByteValued;

use crate::boot::error::{Error, Range};
use crate::boot::image::Image;
use crate::boot::{Protocol, map};

use super::Problem;

/// Where the header lies, in the file as in the boot parameters.
const HEADER_AT: usize = 0x1f1;
/// Where it must have ended: other things follow in the boot parameters.
const HEADER_ROOM_END: usize = 0x290;
/// What the distance in `jump` counts from.
const JUMP_BASE: usize = 0x202;
const SHORT_JUMP: u8 = 0xeb;

/// What `setup_sects` and `syssize` count in.
const SECTOR: u64 = 512;
const PARAGRAPH: u64 = 16;
/// What a zero in `setup_sects` means.
const DEFAULT_SETUP_SECTS: u8 = 4;

/// The oldest version that tells how long a command line may be.
const OLDEST: u16 = 0x206;
/// The first version that says where the payload is.
const HAS_PAYLOAD: u16 = 0x208;
/// The first version with `pref_address` and `init_size`.
const HAS_PLACE: u16 = 0x20a;
/// The first version with `xloadflags`.
const HAS_XLOADFLAGS: u16 = 0x20c;

const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;

/// Kernels that do not say how much room they need are at least a third of it.
const ROOM_FACTOR: u64 = 3;
/// The length of a command line that every kernel takes.
const SHORTEST_COMMAND_LINE: u32 = 255;
/// A boot loader without a number of its own.
const UNKNOWN_LOADER: u8 = 0xff;

/// The setup header of one image, checked.
#[derive(Debug, Clone)]
pub struct SetupHeader {
    /// All fields; those that the header's version does not have are zero.
    fields: setup_header,
    code_at: u64,
    code_size: u64,
}

impl SetupHeader {
    /// Reads the header of `image`, which was found to be a bzImage by its two marks.
    pub fn read(image: &Image<'_>) -> Result<Self, Error> {
        let mut head = [0; HEADER_ROOM_END];
        let length = image.size().min(HEADER_ROOM_END as u64) as usize;
        image.read_at(0, &mut head[..length])?;
        Self::parse(&head, image.size()).map_err(|problem| image.refuse(problem.into()))
    }

    /// `head` is what the file starts with, filled up with zeros.
    fn parse(head: &[u8; HEADER_ROOM_END], file_size: u64) -> Result<Self, Problem> {
        let mut fields = setup_header::default();
        let known = fields.as_mut_slice();
        known.copy_from_slice(&head[HEADER_AT..HEADER_AT + known.len()]);
        check_version(fields.version)?;
        let end = header_end(&fields)?;
        if (end as u64) > file_size {
            let bytes = Range { start: HEADER_AT as u64, size: (end - HEADER_AT) as u64 };
            return Err(Problem::HeaderTruncated { bytes, found: file_size });
        }
        // What comes behind its end is no header any more, but code.
        let known = fields.as_mut_slice();
        let length = (end - HEADER_AT).min(known.len());
        known[length..].fill(0);
        let (code_at, code_size) = code(&fields, file_size)?;
        let header = Self { fields, code_at, code_size };
        header.check_flags()?;
        header.check_payload()?;
        Ok(header)
    }

    fn check_flags(&self) -> Result<(), Problem> {
        let fields = &self.fields;
        if fields.loadflags & LOADED_HIGH == 0 {
            let why =
                "bit 0 (LOADED_HIGH) is clear, as in a zImage, which is loaded low; that is not supported";
            return Err(field("loadflags", fields.loadflags, why));
        }
        let alignment = fields.kernel_alignment;
        if self.is_relocatable() && !alignment.is_power_of_two() {
            return Err(field("kernel_alignment", alignment, "it is no power of two"));
        }
        let most = fields.initrd_addr_max;
        if u64::from(most) < map::HIGH_MEMORY {
            return Err(field("initrd_addr_max", most, "it leaves no room for an initrd"));
        }
        Ok(())
    }

    fn check_payload(&self) -> Result<(), Problem> {
        let (offset, length) = (self.fields.payload_offset, self.fields.payload_length);
        if self.version() < HAS_PAYLOAD || (offset, length) == (0, 0) {
            return Ok(());
        }
        let code = self.code_size;
        if u64::from(offset) >= code {
            let why = format!("the image's code has {code:#x} bytes");
            return Err(field("payload_offset", offset, why));
        }
        if length == 0 || u64::from(offset) + u64::from(length) > code {
            let why = format!("payload_offset is {offset:#x} and the image's code has {code:#x} bytes");
            return Err(field("payload_length", length, why));
        }
        Ok(())
    }

    /// The version of the boot protocol.
    fn version(&self) -> u16 {
        self.fields.version
    }

    /// The protected-mode code in the file.
    pub fn code(&self) -> Range {
        Range { start: self.code_at, size: self.code_size }
    }

    /// The packed kernel in the file.
    pub fn payload(&self) -> Option<Range> {
        let (offset, length) = (self.fields.payload_offset, self.fields.payload_length);
        let is_there = self.version() >= HAS_PAYLOAD && length > 0;
        is_there.then(|| Range { start: self.code_at + u64::from(offset), size: length.into() })
    }

    /// Refuses a payload that is too long to be read: `most` is what the guest's memory holds.
    pub fn check_payload_length(&self, most: u64) -> Result<(), Problem> {
        let length = self.fields.payload_length;
        if u64::from(length) > most {
            return Err(field("payload_length", length, "that is more than the guest's memory (--memory)"));
        }
        Ok(())
    }

    /// Whether the image's own code can be entered in 64-bit mode.
    pub fn has_64_bit_entry(&self) -> bool {
        self.xloadflags() & XLF_KERNEL_64 != 0
    }

    /// The first address that an initrd must not take, if there is a limit for a kernel started like this.
    pub fn initrd_end(&self, protocol: Protocol) -> Option<u64> {
        let anywhere = self.xloadflags() & XLF_CAN_BE_LOADED_ABOVE_4G != 0;
        let limited = protocol == Protocol::Linux32 || !anywhere;
        limited.then(|| u64::from(self.fields.initrd_addr_max) + 1)
    }

    fn xloadflags(&self) -> u16 {
        if self.version() >= HAS_XLOADFLAGS { self.fields.xloadflags } else { 0 }
    }

    /// The alignment at which the image can lie anywhere, if it can.
    pub fn relocatable(&self) -> Option<u64> {
        self.is_relocatable().then(|| self.fields.kernel_alignment.into())
    }

    fn is_relocatable(&self) -> bool {
        self.fields.relocatable_kernel != 0
    }

    /// Where the image wants to lie; the kernel, if the image cannot choose.
    pub fn preferred_address(&self) -> u64 {
        let address = self.fields.pref_address;
        if self.version() >= HAS_PLACE && address != 0 { address } else { self.load_address() }
    }

    /// Where an image that cannot choose has to lie.
    pub fn load_address(&self) -> u64 {
        self.fields.code32_start.into()
    }

    /// How much memory the kernel needs before it can look for more.
    pub fn room(&self) -> u64 {
        let room = match self.version() {
            HAS_PLACE.. => self.fields.init_size.into(),
            _ => self.code_size * ROOM_FACTOR,
        };
        room.max(self.code_size)
    }

    /// Notes where the image was loaded.
    pub fn set_load_address(&mut self, address: u32) {
        self.fields.code32_start = address;
    }

    /// The longest command line that the kernel does not cut off, without its zero.
    pub fn longest_command_line(&self) -> u32 {
        match self.fields.cmdline_size {
            0 => SHORTEST_COMMAND_LINE,
            size => size,
        }
    }

    /// The boot parameters to start from: this header, without what a boot loader has to fill in.
    pub fn boot_params(&self) -> boot_params {
        let mut hdr = self.fields;
        hdr.type_of_loader = UNKNOWN_LOADER;
        // Of these flags the others are for the code that is not run, and for the kernel itself.
        hdr.loadflags = LOADED_HIGH;
        hdr.heap_end_ptr = 0;
        (hdr.ext_loader_ver, hdr.ext_loader_type) = (0, 0);
        (hdr.ramdisk_image, hdr.ramdisk_size) = (0, 0);
        hdr.cmd_line_ptr = 0;
        hdr.setup_data = 0;
        (hdr.hardware_subarch, hdr.hardware_subarch_data) = (0, 0);
        boot_params { hdr, ..boot_params::default() }
    }
}

fn check_version(version: u16) -> Result<(), Problem> {
    match version {
        ..OLDEST => Err(field("version", version, "lodger needs boot protocol 2.06 (0x206) or later")),
        0x300.. => Err(field("version", version, "this boot protocol is not known")),
        _ => Ok(()),
    }
}

/// Where the header ends: `jump` leads there.
fn header_end(fields: &setup_header) -> Result<usize, Problem> {
    let [code, distance] = fields.jump.to_le_bytes();
    if code != SHORT_JUMP {
        return Err(field("jump", fields.jump, "it is no short jump (0xeb) over the header"));
    }
    let end = JUMP_BASE + usize::from(distance);
    let needed = match fields.version {
        HAS_PLACE.. => 0x264,
        HAS_PAYLOAD.. => 0x250,
        _ => 0x23c,
    };
    if !(needed..=HEADER_ROOM_END).contains(&end) {
        let version = fields.version;
        let why = format!(
            "the header would end at {end:#x}, with version {version:#x} it ends between {needed:#x} and \
             {HEADER_ROOM_END:#x}"
        );
        return Err(field("jump", fields.jump, why));
    }
    Ok(end)
}

/// Where the protected-mode code lies in the file.
fn code(fields: &setup_header, file_size: u64) -> Result<(u64, u64), Problem> {
    let sectors = match fields.setup_sects {
        0 => DEFAULT_SETUP_SECTS,
        sectors => sectors,
    };
    // One more is the boot sector.
    let start = (u64::from(sectors) + 1) * SECTOR;
    let Some(left) = file_size.checked_sub(start).filter(|left| *left > 0) else {
        let why =
            format!("that many sectors are {start:#x} bytes with the first, the file has {file_size:#x}");
        return Err(field("setup_sects", fields.setup_sects, why));
    };
    let size = u64::from(fields.syssize) * PARAGRAPH;
    if size == 0 {
        return Err(field("syssize", fields.syssize, "there is no code"));
    }
    // The last paragraph need not be whole.
    if size >= left + PARAGRAPH {
        let why = format!("truncated: that is {size:#x} bytes of code, the file has {left:#x}");
        return Err(field("syssize", fields.syssize, why));
    }
    Ok((start, size.min(left)))
}

fn field(name: &'static str, value: impl Into<u64>, why: impl Into<String>) -> Problem {
    Problem::Field { name, value: value.into(), why: why.into() }
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
