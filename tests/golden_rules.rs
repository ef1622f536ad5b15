//! The rules by which answers are compared with goldens notice faults.

mod harness;

use harness::case::Case;
use harness::compare::{Answer, Precision, compare};

fn case() -> Case {
    Case {
        id: "c".into(),
        prompt_ids: vec![1],
        greedy: vec![5, 6, 7],
        gap: vec![1.0, 0.01, 1.0],
        top5: vec![vec![(5, -0.5), (8, -1.5), (9, -3.0)], vec![(6, -0.7), (8, -0.71)]],
        bf16_dlogprob: Some(0.1),
        bf16_flips: vec![2],
    }
}

fn answer(tokens: &[u32]) -> Answer {
    Answer { tokens: tokens.to_vec(), tops: case().top5 }
}

#[test]
fn equal_answers_and_near_ties_pass() {
    assert_eq!(compare(&case(), &answer(&[5, 6, 7]), Precision::F32), Ok(0.0));
    assert_eq!(compare(&case(), &answer(&[5, 8, 1]), Precision::F32), Ok(0.0), "a tie at step 1");
    assert_eq!(compare(&case(), &answer(&[5, 6, 1]), Precision::Rounded), Ok(0.0), "bf16 flips step 2");
}

#[test]
fn faults_are_named() {
    let check = |answer: &Answer, expected: &str| {
        let message = compare(&case(), answer, Precision::F32).expect_err(expected);
        assert!(message.contains(expected), "{message}");
    };
    check(&answer(&[5, 6]), "2 tokens, expected 3");
    check(&answer(&[8, 6, 7]), "parts at step 0");
    check(&answer(&[5, 9, 7]), "parts at step 1");
    check(&answer(&[5, 6, 1]), "parts at step 2");
    let mut off = answer(&[5, 6, 7]);
    off.tops[0][2].1 = -3.06;
    check(&off, "off by");
    off.tops[0][2].1 = f32::NAN;
    check(&Answer { tops: Vec::new(), ..off.clone() }, "no logprob");
    off.tops[0].remove(1);
    check(&off, "token 8 is not among");
}
