//! Where the components of the extended state lie, in both formats of the save area.
//!
//! The standard format is the processor's own choice, told by leaf 0xD of `cpuid`; the compacted one follows from
//! which components are in it. Intel SDM volume 1, sections 13.4 and 13.5.

use std::ops::Range;
use std::sync::OnceLock;

use crate::hv::Vectors;

/// The component of the x87 registers.
pub const X87: u64 = 1 << 0;
/// The component of the XMM registers.
pub const SSE: u64 = 1 << 1;
/// The component of the upper halves of the YMM registers.
pub const AVX: u64 = 1 << 2;
/// In XCOMP_BV: the area has the compacted format.
pub const COMPACTED: u64 = 1 << 63;

/// Where MXCSR and the mask of its bits lie.
pub const MXCSR: Range<usize> = 24..32;
/// Where the header lies, behind the legacy region.
pub const HEADER: usize = 512;
/// Where the components behind the header begin in the compacted format.
pub const EXTENDED: usize = 576;

/// The control word, status word, tags and pointers of the x87 unit.
pub const X87_CONTROL: Range<usize> = 0..24;
/// Its registers.
pub const X87_REGISTERS: Range<usize> = 32..160;
const XMM: Range<usize> = 160..416;

const ZMM_LOW_UPPER_HALVES: u32 = 6;
const ZMM_HIGH: u32 = 7;
const XSAVE_LEAF: u32 = 0xd;
const SUPERVISOR: u32 = 1 << 0;
const ALIGNED: u32 = 1 << 1;
const ALIGNMENT: usize = 64;

/// A component behind the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// Its number, which is that of its bit in XCR0.
    pub number: u32,
    /// Where it lies in the standard format.
    pub offset: usize,
    /// How many bytes it has.
    pub size: usize,
    /// Whether it begins at a multiple of 64 in the compacted format.
    pub aligned: bool,
}

/// All components behind the header that the host's processor has and a process can use, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout(Vec<Component>);

impl Layout {
    /// The layout of the processor on which this program runs: the one that its KVM saves in, and the one that its
    /// guests are told.
    pub fn host() -> &'static Self {
        static HOST: OnceLock<Layout> = OnceLock::new();
        HOST.get_or_init(Self::ask)
    }

    fn ask() -> Self {
        let ask = |number| std::arch::x86_64::__cpuid_count(XSAVE_LEAF, number);
        let has = |number: u32| match number {
            0..32 => ask(0).eax >> number & 1 != 0,
            _ => ask(0).edx >> (number - 32) & 1 != 0,
        };
        let component = |number| {
            let answer = ask(number);
            (answer.ecx & SUPERVISOR == 0 && answer.eax != 0).then_some(Component {
                number,
                offset: answer.ebx as usize,
                size: answer.eax as usize,
                aligned: answer.ecx & ALIGNED != 0,
            })
        };
        Self::new((2..63).filter(|number| has(*number)).filter_map(component).collect())
    }

    /// Components in ascending order, without those that a processor's saved state has no room for.
    pub fn new(mut components: Vec<Component>) -> Self {
        let room = EXTENDED..=size_of::<Vectors>();
        components.retain(|component| room.contains(&component.offset) && room.contains(&component.end()));
        Self(components)
    }

    /// The components that exist here: a bit for each, those of the legacy region included.
    pub fn known(&self) -> u64 {
        self.0.iter().fold(X87 | SSE, |known, component| known | 1 << component.number)
    }

    /// The parts of a component in the standard format, as far as code of this mode sees them.
    ///
    /// Outside 64-bit mode there are eight vector registers, and the others stay what they are.
    pub fn parts(&self, number: u32, wide: bool) -> impl Iterator<Item = Range<usize>> + use<> {
        let seen = |whole: Range<usize>| match number {
            _ if wide => whole,
            1 | 2 | ZMM_LOW_UPPER_HALVES => whole.start..whole.start + whole.len() / 2,
            ZMM_HIGH => whole.start..whole.start,
            _ => whole,
        };
        let [first, second] = match number {
            0 => [X87_CONTROL, X87_REGISTERS],
            1 => [seen(XMM), 0..0],
            _ => [self.find(number).map_or(0..0, |component| seen(component.offset..component.end())), 0..0],
        };
        [first, second].into_iter().filter(|part| !part.is_empty())
    }

    /// How far behind its place in the standard format a component's place is in an area that contains
    /// `contents` in the compacted format. Less than nothing, mostly: it wraps.
    pub fn moved(&self, number: u32, contents: u64) -> u64 {
        let mut at = EXTENDED;
        for component in self.0.iter().filter(|component| contents >> component.number & 1 != 0) {
            if component.aligned {
                at = at.next_multiple_of(ALIGNMENT);
            }
            if component.number == number {
                return (at as u64).wrapping_sub(component.offset as u64);
            }
            at += component.size;
        }
        0
    }

    /// Where those of the `requested` components end that have a place, in the standard format or in an area that
    /// contains `compacted` in the compacted one.
    pub fn end(&self, requested: u64, compacted: Option<u64>) -> u64 {
        let placed = requested & compacted.unwrap_or(u64::MAX);
        let ends = self.0.iter().filter(|component| placed >> component.number & 1 != 0).map(|component| {
            let moved = compacted.map_or(0, |contents| self.moved(component.number, contents));
            moved.wrapping_add(component.end() as u64)
        });
        ends.max().unwrap_or(0).max(EXTENDED as u64)
    }

    fn find(&self, number: u32) -> Option<&Component> {
        self.0.iter().find(|component| component.number == number)
    }
}

impl Component {
    fn end(&self) -> usize {
        self.offset.saturating_add(self.size)
    }
}

/// The numbers of the bits that are set.
pub fn numbers(components: u64) -> impl Iterator<Item = u32> {
    (0..63).filter(move |number| components >> number & 1 != 0)
}
