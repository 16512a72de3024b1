//! The little of ACPI's machine language (AML) that describes devices at fixed places.
//!
//! Encodings: ACPI 6.5, chapter 20 (terms) and section 6.4 (resources). Everything here takes and gives bytes;
//! names are four characters, which the types make sure of.

/// A name segment.
pub type NameSegment = [u8; 4];

const ZERO: u8 = 0x00;
const ONE: u8 = 0x01;
const NAME: u8 = 0x08;
const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;
const STRING: u8 = 0x0d;
const SCOPE: u8 = 0x10;
const BUFFER: u8 = 0x11;
const PACKAGE: u8 = 0x12;
const METHOD: u8 = 0x14;
const EXTENDED: u8 = 0x5b;
const FIRST_ARGUMENT: u8 = 0x68;
const DEVICE: u8 = 0x82;
const NOTIFY: u8 = 0x86;
const EQUAL: u8 = 0x93;
const IF: u8 = 0xa0;

const IO_PORTS: u8 = 0x47;
const DECODES_16_BITS: u8 = 1;
const FIXED_MEMORY: u8 = 0x86;
const WRITABLE: u8 = 1;
const INTERRUPT: u8 = 0x89;
const CONSUMER: u8 = 1;
const EDGE: u8 = 2;
const END_OF_RESOURCES: u8 = 0x79;

/// A number, in its shortest form.
pub fn integer(value: u32) -> Vec<u8> {
    match value {
        0 => vec![ZERO],
        1 => vec![ONE],
        _ => {
            let bytes = value.to_le_bytes();
            match value {
                0..=0xff => vec![BYTE, bytes[0]],
                0x100..=0xffff => vec![WORD, bytes[0], bytes[1]],
                _ => [&[DWORD], &bytes[..]].concat(),
            }
        }
    }
}

/// A text without zeros in it.
pub fn string(text: &str) -> Vec<u8> {
    [&[STRING], text.as_bytes(), &[0]].concat()
}

/// A compressed device identity such as PNP0501: three letters, each five bits, and four hexadecimal digits
/// (ACPI 6.5, section 19.3.4).
pub fn device_id(vendor: [u8; 3], product: u16) -> Vec<u8> {
    let letters = vendor.iter().fold(0_u16, |bits, letter| bits << 5 | u16::from(letter & 0x1f));
    let bytes = [letters.to_be_bytes(), product.to_be_bytes()].concat();
    [&[DWORD], &bytes[..]].concat()
}

/// `Name (name, value)`.
pub fn name(name: NameSegment, value: &[u8]) -> Vec<u8> {
    [&[NAME], &name[..], value].concat()
}

/// `Device (name) { contents }`.
pub fn device(name: NameSegment, contents: &[u8]) -> Vec<u8> {
    [vec![EXTENDED, DEVICE], with_length(&[&name, contents].concat())].concat()
}

/// `Scope (name) { contents }`, of a name at the root.
pub fn scope(name: NameSegment, contents: &[u8]) -> Vec<u8> {
    [vec![SCOPE], with_length(&[b"\\", &name[..], contents].concat())].concat()
}

/// `Method (name, arguments) { terms }`.
pub fn method(name: NameSegment, arguments: u8, terms: &[u8]) -> Vec<u8> {
    [vec![METHOD], with_length(&[&name, &[arguments & 7][..], terms].concat())].concat()
}

/// `Notify (object, value)`, of an object that is found from where this stands.
pub fn notify(object: NameSegment, value: u32) -> Vec<u8> {
    [&[NOTIFY], &object[..], &integer(value)].concat()
}

/// `If (LEqual (Arg0, value)) { terms }`, in a method.
pub fn if_argument_is(value: u32, terms: &[u8]) -> Vec<u8> {
    let predicate = [&[EQUAL, FIRST_ARGUMENT], &integer(value)[..]].concat();
    [vec![IF], with_length(&[predicate, terms.to_vec()].concat())].concat()
}

/// `Package () { elements }`.
pub fn package(elements: &[Vec<u8>]) -> Vec<u8> {
    [vec![PACKAGE], with_length(&[&[elements.len() as u8], &elements.concat()[..]].concat())].concat()
}

/// `ResourceTemplate () { resources }`.
pub fn resources(resources: &[Vec<u8>]) -> Vec<u8> {
    // A checksum of zero says that there is none.
    let bytes = [resources.concat(), vec![END_OF_RESOURCES, 0]].concat();
    [vec![BUFFER], with_length(&[integer(bytes.len() as u32), bytes].concat())].concat()
}

/// `IO (Decode16, base, base, 1, count)`.
pub fn ports(base: u16, count: u8) -> Vec<u8> {
    let base = base.to_le_bytes();
    [&[IO_PORTS, DECODES_16_BITS], &base[..], &base, &[1, count]].concat()
}

/// `Memory32Fixed (ReadWrite, base, size)`.
pub fn memory(base: u32, size: u32) -> Vec<u8> {
    [&[FIXED_MEMORY, 9, 0, WRITABLE], &base.to_le_bytes()[..], &size.to_le_bytes()].concat()
}

/// `Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) { number }`.
pub fn edge_interrupt(number: u32) -> Vec<u8> {
    [&[INTERRUPT, 6, 0, CONSUMER | EDGE, 1], &number.to_le_bytes()[..]].concat()
}

/// `contents` with their length in front, which counts itself (ACPI 6.5, section 20.2.4).
fn with_length(contents: &[u8]) -> Vec<u8> {
    let length = contents.len();
    let mut bytes = match length {
        // The length's own bytes are part of it: one, two, three or four.
        ..0x3f => vec![length as u8 + 1],
        _ => {
            let more = [2, 3, 4].into_iter().find(|own| length + own < 1 << (8 * own - 4)).unwrap_or(4);
            let length = length + more;
            let mut bytes = vec![(more as u8 - 1) << 6 | length as u8 & 0xf];
            bytes.extend((1..more).map(|byte| (length >> (8 * byte - 4)) as u8));
            bytes
        }
    };
    bytes.extend(contents);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_as_few_bytes_as_they_can() {
        assert_eq!(integer(0), [0]);
        assert_eq!(integer(1), [1]);
        assert_eq!(integer(5), [0x0a, 5]);
        assert_eq!(integer(0x100), [0x0b, 0, 1]);
        assert_eq!(integer(0x1_0000), [0x0c, 0, 0, 1, 0]);
        assert_eq!(integer(u32::MAX), [0x0c, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn identities_are_compressed_as_in_every_pc() {
        // EISAID ("PNP0501") as every disassembly of a PC's tables has it: 0x0105d041.
        assert_eq!(device_id(*b"PNP", 0x0501), [0x0c, 0x41, 0xd0, 0x05, 0x01]);
    }

    #[test]
    fn a_method_is_its_name_its_arguments_and_what_it_does() {
        // As iasl writes `Method (_EVT, 1) { Notify (PWRB, 0x80) }`.
        let written = b"\x14\x0d_EVT\x01\x86PWRB\x0a\x80";
        assert_eq!(method(*b"_EVT", 1, &notify(*b"PWRB", 0x80)), written);
    }

    #[test]
    fn a_choice_is_its_condition_and_what_it_does() {
        // As iasl writes `If (LEqual (Arg0, 13)) { Notify (PWRB, 0x80) }`.
        let written = b"\xa0\x0c\x93\x68\x0a\x0d\x86PWRB\x0a\x80";
        assert_eq!(if_argument_is(13, &notify(*b"PWRB", 0x80)), written);
    }

    #[test]
    fn lengths_count_their_own_bytes() {
        let encoded = |length: usize| {
            let bytes = with_length(&vec![0xee; length]);
            let own = bytes.len() - length;
            (bytes[..own].to_vec(), bytes.len())
        };
        assert_eq!(encoded(0), (vec![1], 1));
        assert_eq!(encoded(0x3e), (vec![0x3f], 0x3f));
        assert_eq!(encoded(0x3f), (vec![0x41, 0x04], 0x41));
        assert_eq!(encoded(0xffd), (vec![0x4f, 0xff], 0xfff));
        assert_eq!(encoded(0xffe), (vec![0x81, 0x00, 0x01], 0x1001));
        assert_eq!(encoded(0xf_fffc), (vec![0x8f, 0xff, 0xff], 0xf_ffff));
        assert_eq!(encoded(0xf_fffd), (vec![0xc1, 0x00, 0x00, 0x01], 0x10_0001));
    }
}
