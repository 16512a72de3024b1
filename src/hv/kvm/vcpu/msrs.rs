//! A processor's model-specific registers, many at once.

use kvm_bindings::{Msrs, kvm_msr_entry};

use super::KvmVcpu;
use crate::hv::kvm::call;
use crate::hv::kvm::vm::malformed;
use crate::hv::{Msr, Result};

impl KvmVcpu {
    /// Those that can be read.
    pub(super) fn save_msrs(&self, indices: &[u32]) -> Result<Vec<Msr>> {
        let mut saved = Vec::with_capacity(indices.len());
        let mut rest = indices;
        // The kernel stops at the first register it cannot read: go on behind it.
        while !rest.is_empty() {
            let entries: Vec<_> =
                rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs = msrs(&entries)?;
            let read =
                self.fd.get_msrs(&mut msrs).map_err(|error| call("read model-specific registers", error))?;
            let values = msrs.as_slice()[..read].iter();
            saved.extend(values.map(|entry| Msr { index: entry.index, value: entry.data }));
            rest = rest.get(read + 1..).unwrap_or_default();
        }
        Ok(saved)
    }

    /// Sets every register that can be set; returns the others.
    pub(super) fn set_msrs_but_refused(&self, values: &[Msr]) -> Result<Vec<Msr>> {
        let mut refused = Vec::new();
        let mut rest = values;
        // The kernel stops at the first register it does not take: go on behind it.
        while !rest.is_empty() {
            let entries: Vec<_> = rest
                .iter()
                .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
                .collect();
            let set = self
                .fd
                .set_msrs(&msrs(&entries)?)
                .map_err(|error| call("set model-specific registers", error))?;
            refused.extend(rest.get(set));
            rest = rest.get(set + 1..).unwrap_or_default();
        }
        Ok(refused)
    }
}

pub(super) fn msrs(entries: &[kvm_msr_entry]) -> Result<Msrs> {
    Msrs::from_entries(entries).map_err(|_| malformed("list model-specific registers"))
}
