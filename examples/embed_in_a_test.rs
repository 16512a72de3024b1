//! How the tests of a kernel of your own boot it: in the test's own process, on the real KVM, without a shell
//! script around it.
//!
//! `cargo test --example embed_in_a_test` runs the tests, `cargo run --example embed_in_a_test` shows the guest.
//! The guest that is part of lodger stands for your kernel here: it takes commands from its command line.

use std::sync::Arc;

use lodger::devices::Collected;
use lodger::hv::kvm::Kvm;
use lodger::vm::{Config, Error, Kernel, Machine, MemorySpec};

/// Boots the kernel with a command line and returns its exit status and what it printed.
fn boot(cmdline: &str) -> Result<(u8, String), Error> {
    let output = Arc::new(Collected::default());
    let config = Config {
        // Yours: Kernel::File("target/kernel.elf".into()), or Kernel::Bytes with an image in memory.
        kernel: Kernel::Embedded,
        memory: MemorySpec::of_size(64 << 20),
        cmdline: Some(cmdline.to_owned()),
        ..Config::default()
    };
    let machine = Machine::new(&Kvm::open()?, &config, output.clone())?;
    // How it ended: by its own status, by a reset, or by a fatal exit, which explains itself when printed.
    let outcome = machine.run();
    Ok((outcome.status(), output.text()))
}

fn main() -> Result<(), Error> {
    let (status, output) = boot("quiet run=echo hello from the guest;mem;exit 0")?;
    print!("{output}");
    println!("— the guest ended with status {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_kernel_greets() {
        let (status, output) = boot("quiet run=echo hello;exit 0").unwrap();
        assert_eq!(status, 0, "{output}");
        assert!(output.contains("hello"), "{output}");
    }

    #[test]
    fn its_status_tells_a_failed_check_from_a_passed_one() {
        assert_eq!(boot("quiet run=exit 3").unwrap().0, 3);
    }

    #[test]
    fn a_crash_is_reported_with_its_reason() {
        let (status, output) = boot("quiet run=crash triple").unwrap();
        assert_eq!(status, 101, "{output}");
    }

    #[test]
    fn a_test_may_talk_to_the_guest() {
        let output = Arc::new(Collected::default());
        let config = Config { cmdline: Some("quiet".to_owned()), ..Config::default() };
        let machine = Machine::new(&Kvm::open().unwrap(), &config, output.clone()).unwrap();
        machine.resume();
        machine.serial().offer_input(b"echo are you there?\n");
        assert!(output.wait_for("\nare you there?", Duration::from_secs(20)), "{}", output.text());
        machine.stop();
    }

    #[test]
    fn main_runs() {
        main().unwrap();
    }
}
