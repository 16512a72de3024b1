//! Commands for virtio devices.

use super::{Outcome, Refusal, narrow, number};
use crate::format::{Picoseconds, Rate, Size};
use crate::machine::Machine;
use crate::memory::Arena;
use crate::parse::split_word;
use crate::virtio::bench::{self, Order, Work};
use crate::virtio::checks::{self, Count, Extent};
use crate::virtio::disk::{Action, Disk, SECTOR};
use crate::virtio::find::Places;
use crate::virtio::{Kind, Registers};
use crate::{println, serial};

pub fn virtio(machine: &Machine, arguments: &str) -> Outcome {
    match arguments {
        "" => list(machine),
        "test" => test(machine, Extent::Usual),
        "test own" => test(machine, Extent::Own),
        "test long" => test(machine, Extent::Long),
        _ => Err(Refusal::Usage),
    }
}

fn test(machine: &Machine, extent: Extent) -> Outcome {
    let Count { passed, failed, not_offered } = checks::run(machine, extent);
    println!("{passed} ok, {failed} failed, {not_offered} not offered");
    if failed == 0 { Ok(()) } else { Err(Refusal::Told) }
}

fn list(machine: &Machine) -> Outcome {
    let places = Places::find(&machine.boot);
    let mut count = 0;
    for (place, registers) in places.iter().filter_map(|place| Some((place, Registers::at(place)?))) {
        let kind = registers.kind();
        // Some machines have more places than devices.
        if kind.0 != 0 {
            count += 1;
            println!("  {:#x}  {:<16} features {:#x}", place.base, kind.name(), registers.offered());
        }
    }
    if count == 0 {
        println!("  none, neither by the command line nor by the ACPI tables");
    }
    Ok(())
}

pub fn disk(machine: &Machine, arguments: &str) -> Outcome {
    let (word, mut arguments) = split_word(arguments);
    let action = match word {
        "read" => Action::Read,
        "write" => Action::Write,
        _ => return Err(Refusal::Usage),
    };
    let bytes: u32 = narrow(&mut arguments)?;
    let depth = narrow(&mut arguments)?;
    let requests = number(&mut arguments)?;
    let order = match arguments {
        "" => Order::Random,
        "seq" => Order::Sequential,
        _ => return Err(Refusal::Usage),
    };
    if bytes == 0 || !u64::from(bytes).is_multiple_of(SECTOR) || depth == 0 {
        return Err(Refusal::Usage);
    }
    let places = Places::find(&machine.boot);
    let mut disks =
        places.iter().filter_map(Registers::at).filter(|registers| registers.kind() == Kind::DISK);
    let Some(registers) = disks.next() else {
        println!("there is no disk; virtio lists what there is");
        return Err(Refusal::Told);
    };
    let told = |reason: &str| {
        println!("the disk cannot be used: {reason}");
        Refusal::Told
    };
    let disk = Disk::set_up(registers, depth, bytes.into(), &mut Arena::new(machine));
    let mut disk = disk.map_err(|unusable| told(unusable.reason()))?;
    let size = disk.size();
    if size < bytes.into() {
        return Err(told("it is smaller than one request"));
    }
    let work = Work { action, bytes, order, requests };
    println!(
        "  disk of {}: {requests} times {word} {}, depth {}",
        Size(size),
        Size(bytes.into()),
        disk.places()
    );
    // Who measures from outside goes by this line and the next.
    serial::flush();
    let done = bench::run(&mut disk, &work);
    registers.reset();
    let picoseconds = machine.clock.picoseconds(done.ticks).max(1);
    let per_second = |count: u64| (u128::from(count) * 1_000_000_000_000 / u128::from(picoseconds)) as u64;
    println!(
        "  done in {}, {} failed, {} doorbells: {} requests/s, {}/s",
        Picoseconds(picoseconds),
        done.failed,
        done.doorbells,
        Rate(per_second(done.requests)),
        Size(per_second(done.requests * u64::from(bytes)))
    );
    if done.failed == 0 { Ok(()) } else { Err(Refusal::Told) }
}
