//! Registers within the image.

use super::*;

fn image() -> Vectors {
    let mut vectors = Vectors::default();
    vectors.0[1000..].fill(0xee);
    vectors.0[160..512].fill(0xee);
    vectors
}

fn has(component: u32) -> bool {
    !extended(component).is_empty()
}

#[test]
fn what_is_in_its_initial_state_reads_as_zero_whatever_lies_there() {
    let vectors = image();
    for register in 0..32 {
        assert_eq!(get_vector(&vectors, register), [0; 64]);
    }
    assert_eq!(get_mask(&vectors, 1), 0);
    assert!(!has_pending_x87_exception(&vectors));
}

#[test]
fn what_was_set_is_there_and_its_neighbours_are_zero() {
    let mut vectors = image();
    let mut value: Wide = std::array::from_fn(|index| index as u8 + 1);
    if !has(UPPER_HALVES) {
        value[32..].fill(0);
    }
    set_vector(&mut vectors, 3, &value);
    assert_eq!(get_vector(&vectors, 3), value);
    assert_eq!((get_vector(&vectors, 2), get_vector(&vectors, 4)), ([0; 64], [0; 64]));
    if has(UPPER_REGISTERS) {
        set_vector(&mut vectors, 31, &value);
        assert_eq!((get_vector(&vectors, 31), get_vector(&vectors, 30)), (value, [0; 64]));
        set_mask(&mut vectors, 7, 5);
        assert_eq!((get_mask(&vectors, 7), get_mask(&vectors, 6)), (5, 0));
    }
}

#[test]
fn zeroes_make_no_component_present() {
    let mut vectors = image();
    set_vector(&mut vectors, 3, &[0; 64]);
    assert_eq!(state_bits(&vectors), 0);
    let mut narrow = [0; 64];
    narrow[0] = 1;
    set_vector(&mut vectors, 3, &narrow);
    assert_eq!(state_bits(&vectors), 1 << SSE);
}

#[test]
fn components_that_were_not_loaded_stay_what_they_were() {
    let mut vectors = Vectors::default();
    set_state_bits(&mut vectors, 0x207);
    vectors.0[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    vectors.0[520..540].fill(9);
    let others = prepare(&mut vectors, 3, 0xffff);
    assert_eq!((state_bits(&vectors), word(&vectors, MXCSR)), (3, 0xffff));
    assert_eq!(vectors.0[520..576], [0; 56]);
    set_state_bits(&mut vectors, 0);
    settle(&mut vectors, 3, others);
    assert_eq!(state_bits(&vectors), 0x206, "SSE, since MXCSR is not what it is initially");
}

#[test]
fn protection_keys_are_never_loaded() {
    assert_eq!(loadable(u64::MAX) & 1 << 9, 0);
    assert_eq!(loadable(0), 3);
}
