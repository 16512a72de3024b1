//! How a machine's processors are arranged: sockets, cores in each socket, threads in each core.
//!
//! The number of a processor's local APIC tells where it sits: threads, cores and sockets have a field of bits
//! each, wide enough for the largest number of its level (Intel SDM volume 3, "Hierarchical Mapping of Shared
//! Resources"; AMD APM volume 3, "Extended APIC ID"). Numbers of processors therefore have gaps wherever a level
//! is not a power of two. `cpuid/` tells guests of the fields, `vm/` creates processors by their numbers, and
//! the tables that a guest reads its processors from have to list the same ones.

/// An interrupt's target has eight bits here.
pub const MOST_PROCESSORS: u32 = 255;
/// The last number there is: 255 addresses all processors at once.
const LAST_NUMBER: u32 = 254;

/// Sockets, cores in each, threads in each core. Every value of this type is one that a machine can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    sockets: u32,
    cores: u32,
    threads: u32,
}

/// Why a machine cannot have such processors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// None at all.
    #[error("a machine needs at least one processor")]
    NoProcessor,
    /// More than can be told apart.
    #[error("{asked} processors were asked for, but a machine can have at most {MOST_PROCESSORS}")]
    TooMany {
        /// How many were asked for.
        asked: u128,
    },
    /// Not too many, but their numbers have gaps.
    #[error(
        "{sockets} sockets of {cores} cores of {threads} threads do not fit: the last processor would have the \
         number {last}, and {LAST_NUMBER} is the highest; levels that are powers of two waste no numbers"
    )]
    Numbers {
        /// How many sockets were asked for…
        sockets: u32,
        /// …of how many cores…
        cores: u32,
        /// …of how many threads.
        threads: u32,
        /// The number that the last processor would have.
        last: u32,
    },
}

impl Topology {
    /// One processor.
    pub const SINGLE: Self = Self { sockets: 1, cores: 1, threads: 1 };

    /// `sockets` sockets of `cores` cores of `threads` threads.
    pub fn new(sockets: u32, cores: u32, threads: u32) -> Result<Self, TopologyError> {
        let asked = u128::from(sockets) * u128::from(cores) * u128::from(threads);
        let topology = Self { sockets, cores, threads };
        match asked {
            0 => Err(TopologyError::NoProcessor),
            _ if asked > MOST_PROCESSORS.into() => Err(TopologyError::TooMany { asked }),
            // At most 255 of anything here, so that nothing below overflows.
            _ => match topology.number(sockets - 1, cores - 1, threads - 1) {
                last if last > LAST_NUMBER => Err(TopologyError::Numbers { sockets, cores, threads, last }),
                _ => Ok(topology),
            },
        }
    }

    /// How many sockets.
    pub fn sockets(&self) -> u32 {
        self.sockets
    }

    /// How many cores in each socket.
    pub fn cores(&self) -> u32 {
        self.cores
    }

    /// How many threads in each core.
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// How many processors altogether.
    pub fn processors(&self) -> u32 {
        self.sockets * self.per_socket()
    }

    /// How many processors in each socket.
    pub fn per_socket(&self) -> u32 {
        self.cores * self.threads
    }

    /// How many low bits of a number tell the threads of a core apart.
    pub fn thread_bits(&self) -> u32 {
        bits_for(self.threads)
    }

    /// How many bits of a number, above those, tell the cores of a socket apart.
    pub fn core_bits(&self) -> u32 {
        bits_for(self.cores)
    }

    /// How many low bits of a number tell the processors of a socket apart.
    pub fn socket_shift(&self) -> u32 {
        self.thread_bits() + self.core_bits()
    }

    /// The socket that the processor with this number sits in.
    pub fn socket_of(&self, apic_id: u32) -> u32 {
        apic_id >> self.socket_shift()
    }

    /// The core of its socket that the processor with this number belongs to.
    pub fn core_of(&self, apic_id: u32) -> u32 {
        apic_id >> self.thread_bits() & ((1 << self.core_bits()) - 1)
    }

    fn number(&self, socket: u32, core: u32, thread: u32) -> u32 {
        socket << self.socket_shift() | core << self.thread_bits() | thread
    }
}

/// The local APIC's number of each processor, in ascending order; the first is the boot processor's, 0.
pub fn apic_ids(topology: &Topology) -> Vec<u32> {
    let mut ids = Vec::with_capacity(topology.processors() as usize);
    for socket in 0..topology.sockets {
        for core in 0..topology.cores {
            ids.extend((0..topology.threads).map(|thread| topology.number(socket, core, thread)));
        }
    }
    ids
}

/// How many bits tell so many things apart.
fn bits_for(count: u32) -> u32 {
    u32::BITS - count.saturating_sub(1).leading_zeros()
}

#[cfg(test)]
pub(super) fn every_topology() -> impl Iterator<Item = Topology> {
    let up_to = |product: u32| 1..=MOST_PROCESSORS / product;
    (1..=MOST_PROCESSORS).flat_map(move |sockets| up_to(sockets).map(move |cores| (sockets, cores))).flat_map(
        move |(sockets, cores)| {
            up_to(sockets * cores).filter_map(move |threads| Topology::new(sockets, cores, threads).ok())
        },
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ids(sockets: u32, cores: u32, threads: u32) -> Vec<u32> {
        apic_ids(&Topology::new(sockets, cores, threads).unwrap())
    }

    #[test]
    fn numbers_have_gaps_where_a_level_is_no_power_of_two() {
        assert_eq!(ids(1, 1, 1), [0]);
        assert_eq!(ids(1, 3, 1), [0, 1, 2]);
        assert_eq!(ids(2, 2, 2), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(ids(2, 3, 1), [0, 1, 2, 4, 5, 6]);
        assert_eq!(ids(2, 3, 2), [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
        assert_eq!(ids(1, 2, 3), [0, 1, 2, 4, 5, 6]);
        assert_eq!(ids(255, 1, 1), (0..255).collect::<Vec<_>>());
    }

    #[test]
    fn in_every_topology_numbers_are_unique_and_say_where_a_processor_sits() {
        let mut topologies = 0;
        for topology in every_topology() {
            topologies += 1;
            let ids = apic_ids(&topology);
            assert_eq!(ids.len() as u32, topology.processors());
            assert!(ids.is_sorted() && ids[0] == 0, "{topology:?}");
            assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{topology:?}");
            assert!(*ids.last().unwrap() <= LAST_NUMBER, "{topology:?}");
            for (at, &id) in (0..).zip(&ids) {
                assert_eq!(topology.socket_of(id), at / topology.per_socket(), "{topology:?}");
                assert_eq!(topology.core_of(id), at / topology.threads % topology.cores, "{topology:?}");
                assert_eq!(id & ((1 << topology.thread_bits()) - 1), at % topology.threads, "{topology:?}");
            }
        }
        assert!(topologies > 3000, "{topologies}");
    }

    #[test]
    fn what_no_machine_can_have_is_refused() {
        for (sockets, cores, threads) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (0, u32::MAX, u32::MAX)] {
            assert_eq!(Topology::new(sockets, cores, threads), Err(TopologyError::NoProcessor));
        }
        assert_eq!(Topology::new(1, 256, 1), Err(TopologyError::TooMany { asked: 256 }));
        let all = u128::from(u32::MAX);
        let error = Topology::new(u32::MAX, u32::MAX, u32::MAX);
        assert_eq!(error, Err(TopologyError::TooMany { asked: all * all * all }));
        // Fewer than 255, but the fields of their numbers have 4 and 5 bits.
        let error = Topology::new(17, 9, 1).unwrap_err().to_string();
        assert!(error.contains("17 sockets of 9 cores of 1 threads") && error.contains("264"), "{error}");
    }
}
