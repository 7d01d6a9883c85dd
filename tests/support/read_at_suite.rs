//! Conformance suite of `ReadAt`, as one function.
//!
//! It never looks inside: only the trait is used, and the expected bytes are the oracle.

#![allow(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a broken promise should fail the test"
)]

use ocifs::io::{ByteRange, FaultClass, ReadAt, read_all, read_vec};

use crate::random::Random;

/// Fails, naming `name`, when `bytes` are not exactly `expected` through any door of the trait.
pub async fn check(name: &str, bytes: &dyn ReadAt, expected: &[u8]) {
    let size = expected.len() as u64;
    assert_eq!(bytes.size(), size, "{name}: size");
    assert!(read_all(bytes).await.unwrap() == expected, "{name}: the whole");

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut ranges = vec![(0, 0), (size / 2, 0), (size, 0)];
    for length in [1, 2, 511, 512, 513, 4096] {
        let length = size.min(length);
        ranges.extend([(0, length), (size - length, length), ((size - length) / 2, length)]);
    }
    for _ in 0..16 {
        let start = random.below(size + 1);
        ranges.push((start, random.below((size - start).min(100_000) + 1)));
    }
    for (start, length) in ranges {
        let range = ByteRange::at(start, length);
        let want = &expected[start as usize..(start + length) as usize];
        // A buffer that holds something shows what was not written.
        let mut buf = vec![0xa5; length as usize];
        bytes
            .read_at(start, &mut buf)
            .await
            .unwrap_or_else(|error| panic!("{name}: {range}: {}", error.chain()));
        assert!(buf == want, "{name}: read_at of {range}");
        let mut buf = vec![0x5a; length as usize];
        if bytes.read_ready(start, &mut buf).unwrap() {
            assert!(buf == want, "{name}: read_ready of {range}");
        }
    }

    for (start, length) in [(size, 1), (size + 1, 0), (size + 1, 1), (0, size + 1), (u64::MAX, 1)] {
        if length > 1 << 20 {
            continue;
        }
        let range = ByteRange::at(start, length);
        if range.end <= size {
            continue;
        }
        let error = read_vec(bytes, range).await.expect_err(name);
        assert_eq!(error.fault(), FaultClass::Usage, "{name}: {range} passes the end");
        let mut buf = vec![0; length as usize];
        let error = bytes.read_at(start, &mut buf).await.expect_err(name);
        assert_eq!(error.fault(), FaultClass::Usage, "{name}: {range} passes the end");
    }

    let mut at = 0;
    while let Some(data) = bytes.next_data(at) {
        assert!(data >= at && data < size, "{name}: next_data({at}) is {data}");
        assert!(expected[at as usize..data as usize].iter().all(|byte| *byte == 0), "{name}: hole at {at}");
        at = bytes.next_hole(data);
        assert!(at > data && at <= size, "{name}: next_hole({data}) is {at}");
    }
    assert!(expected[at as usize..].iter().all(|byte| *byte == 0), "{name}: hole at {at}");
}
