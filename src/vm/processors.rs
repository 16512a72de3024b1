//! Making the virtual processors of a machine what they are in a PC after its firmware is done.

use super::Error;
use crate::hv::{self, CpuidEntry, Hypervisor, Vcpu, Vm};
use crate::memory::{HOLE_END, HOLE_START};
use crate::x86::cpuid::{Quirks, VcpuIdentity, guest_cpuid};
use crate::x86::model::{self, CpuModel};
use crate::x86::topology::{Topology, apic_ids};
use crate::x86::{lapic, msrs};

/// The leaves that all processors have in common: what `model` makes of those that the host offers. `vcpu` is one
/// that has not run, and is given its final description later.
pub(super) fn choose_features(
    vcpu: &impl Vcpu,
    offered: Vec<CpuidEntry>,
    model: &CpuModel,
    quirks: Quirks,
) -> Result<Vec<CpuidEntry>, Error> {
    if model.is_host() {
        return Ok(model.choose(&offered, &[], quirks)?);
    }
    // Some hosts show guests more than they offer and do not hide all that they are asked to (measured on a KVM
    // without hardware virtualization): only they themselves can tell.
    let offered = shown(vcpu, &offered)?;
    let asked = model.choose(&offered, &[], quirks)?;
    let kept = shown(vcpu, &asked)?;
    let returned = model::returned(&asked, &kept);
    if returned.is_empty() {
        return Ok(asked);
    }
    log::warn!(
        "this host's KVM does not hide everything: beyond what --cpu {model} says, guests see {}; they can move \
         only to hosts that have these, too",
        returned.join(" ")
    );
    Ok(model.choose(&offered, &kept, quirks)?)
}

/// What a guest would see if it were told `entries`.
pub(super) fn shown(vcpu: &impl Vcpu, entries: &[CpuidEntry]) -> hv::Result<Vec<CpuidEntry>> {
    vcpu.set_cpuid(entries)?;
    vcpu.cpuid()
}

/// Tells each processor who it is and what it has, and sets what firmware sets. They were created with the
/// numbers of `topology`, in the same order.
pub(super) fn set_up<V: Vcpu>(vcpus: &[V], topology: Topology, features: &[CpuidEntry]) -> hv::Result<()> {
    let firmware = msrs::left_by_firmware(features, HOLE_START..HOLE_END);
    for (apic_id, vcpu) in apic_ids(&topology).into_iter().zip(vcpus) {
        let identity = VcpuIdentity { apic_id, topology, tsc_khz: vcpu.tsc_khz() };
        vcpu.set_cpuid(&guest_cpuid(features, identity))?;
        let mut apic = vcpu.local_apic()?;
        lapic::wire_local_pins(&mut apic, apic_id == 0);
        vcpu.set_local_apic(&apic)?;
        let taken = vcpu.set_msrs(&firmware.needed)?;
        if taken < firmware.needed.len() && apic_id == 0 {
            log::warn!(
                "this host's KVM refuses {} of the registers that firmware sets, so the guest's kernel may \
                 complain about them; RUST_LOG=debug names them",
                firmware.needed.len() - taken
            );
        }
        vcpu.set_msrs(&firmware.helpful)?;
    }
    Ok(())
}

/// The feature flags that guests can have on this host.
pub fn offered_flags(hypervisor: &impl Hypervisor) -> Result<Vec<&'static str>, Error> {
    let vm = hypervisor.create_vm()?;
    // With it a processor's local APIC belongs to the hypervisor, as in every machine.
    vm.create_interrupt_controller()?;
    let offered = shown(&vm.create_vcpu(0)?, &hypervisor.supported_cpuid()?)?;
    // Nothing is taken away by the model of which this is a part.
    Ok(model::flags_of(&CpuModel::default().choose(&offered, &[], Quirks::default())?))
}
