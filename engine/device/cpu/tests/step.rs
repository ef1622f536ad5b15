//! Step metadata, memory and names.

use super::*;

#[test]
fn tokens_in_flight_are_resolved_and_the_rest_stay() {
    let device = CpuDevice::new(Some(1)).unwrap();
    let mut step = attention::step(16, &[2, 1], &[0, 4], 1);
    device.write_ints(&mut step.token_ids, &[10, 11, 12]).unwrap();
    device.write_ints(&mut step.token_source, &[-1, 3, 0]).unwrap();
    device.resolve_tokens(&mut step, &vec![70, 71, 72, 73]).unwrap();
    assert_eq!(step.token_ids, [10, 73, 70]);
}

#[test]
fn rows_are_gathered_in_the_order_asked_for() {
    let device = CpuDevice::new(Some(1)).unwrap();
    let mut step = attention::step(16, &[3], &[0], 1);
    (step.logit_rows, step.num_logit_rows) = (vec![2, 0, 9], 2);
    let mut out = empty(&device, 3, 2);
    device.gather_rows(&mut out, &tensor(&device, 2, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), &step).unwrap();
    assert_eq!(out.values(), [4.0, 5.0, 0.0, 1.0]);
    (step.first_logit_row, step.num_logit_rows) = (1, 1);
    device.gather_rows(&mut out, &tensor(&device, 2, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), &step).unwrap();
    assert_eq!(out.values(), [0.0, 1.0]);
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let device = CpuDevice::new(Some(1)).unwrap();
    assert!(device.alloc(usize::MAX, 2, DType::F32).is_err());
    assert!(device.alloc(2, 2, DType::BF16).is_err());
    assert!(device.free_memory().unwrap() > 0);
    assert!(device.name().starts_with("cpu "));
}
