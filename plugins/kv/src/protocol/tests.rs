//! The format, byte by byte, and what decoding does with bytes that do not follow it.

use super::*;

/// Every command once, with its bytes.
fn commands() -> Vec<(Command<'static>, &'static [u8])> {
    vec![
        (
            Command::Put(Put { key: b"ke", value: b"value", expected: None, ttl_ms: None }),
            b"\x01\x00\x02\0\0\0kevalue",
        ),
        (
            Command::Put(Put { key: b"ke", value: b"", expected: Some(0x0102), ttl_ms: None }),
            b"\x01\x01\x02\x01\0\0\0\0\0\0\x02\0\0\0ke",
        ),
        (
            Command::Put(Put { key: b"", value: b"\xff", expected: None, ttl_ms: None }),
            b"\x01\x00\0\0\0\0\xff",
        ),
        (
            Command::Put(Put { key: b"k", value: b"v", expected: None, ttl_ms: Some(0x0304) }),
            b"\x01\x02\x04\x03\0\0\0\0\0\0\x01\0\0\0kv",
        ),
        (
            Command::Put(Put { key: b"k", value: b"v", expected: Some(2), ttl_ms: Some(3) }),
            b"\x01\x03\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01\0\0\0kv",
        ),
        (Command::Delete { key: b"k\0\xff", expected: None }, b"\x02k\0\xff"),
        (Command::Delete { key: b"k", expected: Some(7) }, b"\x03\x07\0\0\0\0\0\0\0k"),
        (Command::Increment { key: b"k", delta: -2 }, b"\x04\xfe\xff\xff\xff\xff\xff\xff\xffk"),
    ]
}

/// Every query once, with its bytes.
fn queries() -> Vec<(Query<'static>, &'static [u8])> {
    let scan = Scan { prefix: b"pre", after: None, max_rows: 3, max_bytes: 0x0400 };
    vec![
        (Query::Get { key: b"key" }, b"\x10key"),
        (Query::Scan(scan), b"\x11\x00\x03\0\0\0\0\x04\0\0\x03\0\0\0pre"),
        (
            Query::Scan(Scan { after: Some(b"prey"), ..scan }),
            b"\x11\x01\x03\0\0\0\0\x04\0\0\x03\0\0\0preprey",
        ),
        (
            Query::Scan(Scan { after: Some(b""), ..scan }),
            b"\x11\x01\x03\0\0\0\0\x04\0\0\x03\0\0\0pre",
        ),
        (Query::Expiring { until_ms: 0x0506 }, b"\x12\x06\x05\0\0\0\0\0\0"),
    ]
}

#[test]
fn commands_have_the_documented_bytes() {
    for (command, bytes) in commands() {
        assert_eq!(command.encode(), bytes);
        assert_eq!(command.encoded_len(), bytes.len());
        assert_eq!(Command::decode(bytes), Ok(command));
    }
}

#[test]
fn queries_have_the_documented_bytes() {
    for (query, bytes) in queries() {
        assert_eq!(query.encode(), bytes);
        assert_eq!(query.encoded_len(), bytes.len());
        assert_eq!(Query::decode(bytes), Ok(query));
    }
}

#[test]
fn encoding_appends() {
    let mut bytes = b"before".to_vec();
    Command::Delete { key: b"k", expected: None }.encode_into(&mut bytes);
    Query::Get { key: b"k" }.encode_into(&mut bytes);
    assert_eq!(bytes, b"before\x02k\x10k");
}

#[test]
fn a_fixed_part_cut_short_is_named() {
    let put = b"\x01\x01\x02\x01\0\0\0\0\0\0\x02\0\0\0ke";
    for (len, part) in [
        (0, "tag"),
        (1, "flags"),
        (2, "expected version"),
        (9, "expected version"),
        (10, "length of the key"),
        (13, "length of the key"),
        (14, "key"),
        (15, "key"),
    ] {
        assert_eq!(Command::decode(&put[..len]), Err(Malformed::Truncated(part)), "{len} bytes");
    }
    assert_eq!(Malformed::Truncated("key").to_string(), "the bytes end within the key");
}

#[test]
fn unknown_tags_and_flags_are_refused() {
    for tag in 0..=u8::MAX {
        if !(1..=5).contains(&tag) {
            assert_eq!(Command::decode(&[tag, 0]), Err(Malformed::UnknownTag(tag)));
        }
        if !(16..=18).contains(&tag) {
            assert_eq!(Query::decode(&[tag, 0]), Err(Malformed::UnknownTag(tag)));
        }
    }
    assert_eq!(Command::decode(b"\x01\x04\0\0\0\0"), Err(Malformed::UnknownFlags(4)));
    assert_eq!(Query::decode(b"\x11\x81"), Err(Malformed::UnknownFlags(0x81)));
    let trailing = b"\x11\x00\x03\0\0\0\0\x04\0\0\x01\0\0\0pq";
    assert_eq!(Query::decode(trailing), Err(Malformed::Trailing("prefix")));
    let trailing = b"\x12\0\0\0\0\0\0\0\0\0";
    assert_eq!(Query::decode(trailing), Err(Malformed::Trailing("time")));
}

#[test]
fn a_length_beyond_the_end_is_no_reason_to_allocate_or_panic() {
    let put = b"\x01\x00\xff\xff\xff\xffkey";
    assert_eq!(Command::decode(put), Err(Malformed::Truncated("key")));
    let page = b"\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0key";
    assert!(ScanPage::decode(page).is_err());
}

#[test]
fn an_atomic_command_reads_back_as_written_and_no_part_of_it_does() {
    let compares = [
        Compare { key: b"a", condition: Condition::Exists },
        Compare { key: b"", condition: Condition::Version(7) },
    ];
    let put = Put { key: b"a", value: b"v", expected: None, ttl_ms: Some(1) };
    let operations = [
        AtomicOperation::Write(Command::Put(put)),
        AtomicOperation::Get { key: b"a" },
        AtomicOperation::Write(Command::Increment { key: b"b", delta: 2 }),
    ];
    let (mut encoded_compares, mut encoded_operations) = (Vec::new(), Vec::new());
    compares.iter().for_each(|compare| Atomic::push_compare(&mut encoded_compares, compare));
    operations.iter().for_each(|o| Atomic::push_operation(&mut encoded_operations, o));
    let atomic =
        Atomic::new(&encoded_compares, &encoded_operations).expect("all of it is well-formed");
    let command = Command::Atomic(atomic);
    let bytes = command.encode();
    assert_eq!(bytes.len(), command.encoded_len());
    assert!(
        bytes.starts_with(b"\x05\x1b\0\0\0\x00\0\0\0\0\0\0\0\0\x01\0\0\0a\x01\x07"),
        "{bytes:?}"
    );
    let Ok(Command::Atomic(decoded)) = Command::decode(&bytes) else { panic!("{bytes:?}") };
    assert_eq!(decoded.compares().collect::<Vec<_>>(), compares);
    assert_eq!(decoded.operations().collect::<Vec<_>>(), operations);

    // Whole operations at the end may be missing: those are shorter commands.
    let mut ends = vec![5 + encoded_compares.len()];
    for operation in &operations {
        let mut one = Vec::new();
        Atomic::push_operation(&mut one, operation);
        ends.push(ends[ends.len() - 1] + one.len());
    }
    for len in 0..bytes.len() {
        assert_eq!(Command::decode(&bytes[..len]).is_ok(), ends.contains(&len), "{len} bytes");
    }
}

#[test]
fn an_atomic_command_holds_only_what_it_may() {
    let operation = |bytes: &[u8]| {
        let mut list = Vec::new();
        list.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        list.extend_from_slice(bytes);
        Atomic::new(b"", &list).map(|_| ())
    };
    assert_eq!(operation(b"\x02k"), Ok(()));
    assert_eq!(operation(b"\x05\0\0\0\0"), Err(Malformed::UnknownTag(5)));
    assert_eq!(operation(b"\x11\0"), Err(Malformed::UnknownTag(17)));
    assert_eq!(operation(b""), Err(Malformed::Truncated("tag")));
    let compare = b"\x02\0\0\0\0\0\0\0\0\0\0\0\0";
    assert_eq!(Atomic::new(compare, b"").map(|_| ()), Err(Malformed::UnknownCondition(2)));
}

#[test]
fn the_outcome_of_an_atomic_command_decodes_to_ranges() {
    assert_eq!(decode_atomic(b"\x01"), Ok(AtomicOutcome::Held(vec![])));
    let two = b"\x01\0\0\0\0\x02\0\0\0ab";
    assert_eq!(decode_atomic(two), Ok(AtomicOutcome::Held(vec![5..5, 9..11])));
    let truncated = Err(Malformed::Truncated("response of an operation"));
    assert_eq!(decode_atomic(&two[..10]), truncated);
    let failed = b"\0\x03\0\0\0\x07\0\0\0\0\0\0\0";
    assert_eq!(decode_atomic(failed), Ok(AtomicOutcome::Failed { compare: 3, version: 7 }));
    assert_eq!(decode_atomic(b"\x02"), Err(Malformed::NotABool(2)));
    assert_eq!(decode_atomic(b"\0\x03\0\0\0"), Err(Malformed::Truncated("version")));
}

fn found(version: u64, ttl_ms: Option<u64>, value: std::ops::Range<usize>) -> Found {
    Found { version, ttl_ms, value }
}

#[test]
fn responses_decode_to_ranges() {
    assert_eq!(decode_put(b"\x07\0\0\0\0\0\0\0"), Ok(7));
    assert_eq!(decode_put(b"\x07\0\0\0\0\0\0"), Err(Malformed::Truncated("version")));
    assert_eq!(decode_put(b"\x07\0\0\0\0\0\0\0\0"), Err(Malformed::Trailing("version")));
    assert_eq!(decode_delete(b"\x01"), Ok(true));
    assert_eq!(decode_delete(b"\x00"), Ok(false));
    assert_eq!(decode_delete(b"\x02"), Err(Malformed::NotABool(2)));
    assert!(decode_delete(b"").is_err());
    assert!(decode_delete(b"\x01\x01").is_err());
    assert_eq!(decode_get(b""), Ok(None));
    assert_eq!(decode_get(b"\x07\0\0\0\0\0\0\0v"), Ok(Some(found(7, None, 8..9))));
    assert_eq!(decode_get(b"\x07\0\0\0\0\0\0\0"), Ok(Some(found(7, None, 8..8))));
    let with_time = b"\x07\0\0\0\0\0\0\x80\x09\0\0\0\0\0\0\0v";
    assert_eq!(decode_get(with_time), Ok(Some(found(7, Some(9), 16..17))));
    assert_eq!(decode_get(&with_time[..15]), Err(Malformed::Truncated("time to live")));
    let incremented = b"\x07\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(decode_increment(incremented), Ok(Incremented { value: -1, version: 7 }));
    assert_eq!(decode_increment(&incremented[..15]), Err(Malformed::Truncated("number")));
    assert_eq!(decode_expiring(b"\x01"), Ok(true));
    assert_eq!(decode_expiring(b"\x02"), Err(Malformed::NotABool(2)));
    assert_eq!(decode_get(b"\x07\0\0"), Err(Malformed::Truncated("version")));
}

#[test]
fn a_page_reads_back_as_written_and_no_part_of_a_row_does() {
    let mut bytes = Vec::new();
    let mut writer = PageWriter::new(&mut bytes, 2, 1_000);
    assert!(writer.push(b"a", 7, b"one"));
    let one_row = 1 + 16 + 1 + 3;
    assert!(writer.push(b"\xff\0", 8, b""));
    assert!(!writer.push(b"c", 9, b"one too many"));

    let page = ScanPage::decode(&bytes).expect("the page is whole");
    assert!(page.more());
    let rows: Vec<_> = page
        .rows()
        .map(|row| (bytes[row.key].to_vec(), row.version, bytes[row.value].to_vec()))
        .collect();
    let expected = [(b"a".to_vec(), 7, b"one".to_vec()), (b"\xff\0".to_vec(), 8, Vec::new())];
    assert_eq!(rows, expected);

    for len in 0..bytes.len() {
        let whole_rows_only = len == 1 || len == one_row;
        assert_eq!(ScanPage::decode(&bytes[..len]).is_ok(), whole_rows_only, "{len} bytes");
    }
}

#[test]
fn versions_grow_with_the_log_and_within_an_entry() {
    let last = (1 << 20) - 1;
    let in_order = [(1, 0), (1, 1), (1, last), (2, 0), (1 << 40, 5), ((1 << 43) - 1, last)];
    let versions = in_order.map(|(index, position)| {
        let version = version::pack(index, position).expect("within the limits");
        assert_eq!((version::log_index(version), version::position(version)), (index, position));
        version
    });
    assert!(versions.is_sorted_by(|one, next| one < next));
    assert!(versions[0] > version::NONE);
    assert!(versions.iter().all(|version| version & HAS_TIME == 0), "the highest bit is free");
    assert_eq!(version::pack(1, last + 1), None);
    assert_eq!(version::pack(1 << 43, 0), None);
}
