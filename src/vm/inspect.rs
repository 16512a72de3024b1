//! A machine as a tree of words and numbers, for people and programs that look at it while it runs.
//!
//! Nothing here waits for the guest or for a device: what cannot be told at this moment is left out.

use std::fs;

use serde::{Deserialize, Serialize};

use super::description::Description;
use super::{DiskImage, Machine};
use crate::bus::Unowned;
use crate::devices::virtio::balloon::GivenBack;
use crate::devices::virtio::mmio::Look;
use crate::hv::Vm;
use crate::kernel_files;
use crate::snapshot::{Snapshot, resolved};

/// The snapshot with which a machine began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredFrom {
    /// Where it was.
    pub directory: String,
    /// By what it is told from all others.
    pub id: String,
}

impl From<&Snapshot> for RestoredFrom {
    fn from(snapshot: &Snapshot) -> Self {
        let directory = resolved(snapshot.directory()).display().to_string();
        Self { directory, id: snapshot.info().id_in_hex() }
    }
}

/// What a machine is doing, besides its state.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inspection {
    /// How it would be described as it is now, with the keys of `vm.toml`; nothing if no text can do that.
    pub configuration: Option<serde_json::Value>,
    /// Its processors.
    pub processors: Vec<Processor>,
    /// Its virtio devices, in the order in which the guest finds them.
    pub devices: Vec<VirtioDevice>,
    /// What its disks are in, in the order in which they were described.
    pub disks: Vec<DiskImage>,
    /// Its balloon, if it has one.
    pub balloon: Option<BalloonLook>,
    /// What the guest accessed although nobody owns it.
    pub unowned: Unowned,
    /// The last code that the guest wrote to the POST port.
    pub last_post_code: Option<u8>,
    /// What the process takes.
    pub memory: MemoryLook,
    /// The process's threads.
    pub threads: Vec<ThreadLook>,
}

/// A processor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Processor {
    /// Its number.
    pub id: u32,
    /// How much processor time it has used, in seconds.
    pub seconds: Option<f64>,
    /// How often it left the guest, by reason.
    pub exits: Vec<Counted>,
    /// What was done in KVM's place, and how often.
    pub completions: Vec<Counted>,
    /// How many instructions of the guest's kernel were executed in software.
    pub kernel_instructions: u64,
}

/// Something that was counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// What.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// A virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VirtioDevice {
    /// What it is.
    pub name: &'static str,
    /// What its driver has set up. Left out while the device is being stopped or started.
    #[serde(flatten)]
    pub look: Option<Look>,
}

/// A balloon, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct BalloonLook {
    /// What the guest is asked to have it hold.
    pub target: u64,
    /// What it holds, as the guest says.
    pub actual: u64,
    /// What was given back into it, all in all.
    pub inflated: u64,
    /// What was reported as free, all in all.
    pub reported: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryLook {
    /// What the guest has.
    pub guest: u64,
    /// What of it and of lodger's own the host has to keep at the moment.
    pub resident: Option<u64>,
    /// The most that it was.
    pub peak: Option<u64>,
}

/// A thread.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ThreadLook {
    /// Its number, by which the host knows it.
    pub id: u32,
    /// What it is for.
    pub name: String,
    /// How much processor time it has used, in seconds.
    pub seconds: Option<f64>,
}

/// Looks at a machine of this process that was described like this.
pub fn inspect<V: Vm>(machine: &Machine<V>, description: &Description) -> Inspection {
    let mut now = description.clone();
    now.config.disks = machine.disk_specs();
    let is_absolute = now.make_absolute().is_ok();
    let status = kernel_files::read("/proc/self/status").unwrap_or_default();
    Inspection {
        configuration: is_absolute.then(|| now.to_tree().ok()).flatten(),
        processors: processors(machine),
        devices: machine
            .virtio()
            .iter()
            .map(|device| VirtioDevice { name: device.device().kind().name, look: device.look() })
            .collect(),
        disks: machine.disk_images(),
        balloon: machine.balloon().map(|balloon| {
            let GivenBack { inflated, reported } = balloon.given_back();
            BalloonLook { target: balloon.target(), actual: balloon.actual(), inflated, reported }
        }),
        unowned: machine.bus().unowned(),
        last_post_code: machine.last_post_code(),
        memory: MemoryLook {
            guest: machine.memory().layout().size(),
            resident: kernel_files::bytes(&status, "VmRSS"),
            peak: kernel_files::bytes(&status, "VmHWM"),
        },
        threads: threads(),
    }
}

fn processors<V: Vm>(machine: &Machine<V>) -> Vec<Processor> {
    let counted = |name: &str, count| Counted { name: name.to_owned(), count };
    let look = |vcpu: &crate::vcpu::VcpuThread<V::Vcpu>| Processor {
        id: vcpu.id(),
        seconds: vcpu.time_used().map(|time| time.as_secs_f64()),
        exits: vcpu.counters().iter().map(|(kind, count)| counted(kind.name(), count)).collect(),
        completions: vcpu
            .counters()
            .completions()
            .iter()
            .map(|(name, count)| counted(name, *count))
            .collect(),
        kernel_instructions: vcpu.counters().kernel_instructions(),
    };
    machine.vcpus().iter().map(look).collect()
}

fn threads() -> Vec<ThreadLook> {
    let Ok(entries) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let mut threads: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            // One that has ended meanwhile is none.
            let name = fs::read_to_string(entry.path().join("comm")).ok()?.trim_end().to_owned();
            let used = fs::read_to_string(entry.path().join("schedstat")).ok();
            let nanoseconds = used.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
            Some(ThreadLook { id, name, seconds: nanoseconds.map(|time| time as f64 / 1e9) })
        })
        .collect();
    threads.sort_by_key(|thread| thread.id);
    threads
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::devices::Collected;
    use crate::hv::fake::{FakeHypervisor, Step};
    use crate::vm::{Completion, Config};

    #[test]
    fn a_machine_is_described_as_it_was_asked_for_and_as_it_is() {
        let config = Config {
            cpus: 2.into(),
            rng: true,
            balloon: Some("4M".parse().unwrap()),
            completion: Completion::Off,
            ..Config::default()
        };
        let hypervisor = FakeHypervisor::new([Step::PortWrite { port: 0x80, width: 1, data: vec![0x17] }]);
        let machine = Machine::new(&hypervisor, &config, Arc::new(Collected::default())).unwrap();
        machine.resume();
        while machine.vcpus().iter().any(|vcpu| vcpu.counters().total() == 0) {
            std::thread::yield_now();
        }
        let description = Description { config, ..Description::default() };
        let tree = serde_json::to_value(inspect(&machine, &description)).unwrap();
        let configuration = &tree["configuration"];
        assert_eq!((&configuration["cpus"], &configuration["balloon"]), (&2.into(), &"4M".into()));
        assert_eq!(tree["processors"].as_array().unwrap().len(), 2);
        assert_eq!(tree["processors"][0]["exits"][0]["name"], "pio-write");
        assert_eq!(tree["devices"][0]["name"], "virtio-rng");
        assert_eq!(tree["devices"][1]["queues"].as_array().unwrap().len(), 5);
        assert_eq!(tree["balloon"]["target"], 4 << 20);
        assert_eq!(
            (&tree["memory"]["guest"], &tree["last-post-code"]),
            (&(256_u64 << 20).into(), &0x17.into())
        );
        let threads = tree["threads"].as_array().unwrap();
        assert!(threads.iter().any(|thread| thread["name"] == "vcpu1"), "{threads:?}");
    }
}
