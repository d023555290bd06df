use std::io::{PipeReader, pipe};
use std::thread;

use proptest::prelude::*;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_raw(&mut bytes, kind, &[payload]);
    bytes
}

/// What an inbox makes of some bytes, after which the far side closes.
fn inbox(bytes: Vec<u8>) -> Inbox<PipeReader> {
    let (reader, mut writer) = pipe().unwrap();
    // The reader may give up before all is written.
    thread::spawn(move || drop(writer.write_all(&bytes)));
    Inbox::new(reader, LIMIT)
}

fn message_of(error: Error) -> String {
    assert!(matches!(error, Error::Wire(_)), "{error:?}");
    error.to_string()
}

#[test]
fn a_frame_cut_anywhere_is_incomplete_and_never_wrong() {
    let whole = frame(Kind::Message, b"hello");
    for end in 0..whole.len() {
        assert_eq!(parse(&whole[..end]).unwrap(), None, "cut at {end}");
        let mut inbox = inbox(whole[..end].to_vec());
        match end {
            0 => assert_eq!(inbox.next().unwrap(), Incoming::End),
            _ => assert!(message_of(inbox.next().unwrap_err()).contains("middle of a frame")),
        }
    }
    let parsed = parse(&whole).unwrap();
    assert_eq!(parsed, Some((Kind::Message, 5..10, whole.len())));
}

#[test]
fn no_flipped_bit_goes_unseen() {
    let whole = frame(Kind::Data, b"\x01\x00\x00\x00content");
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A length that grew waits for more; everything else is refused.
        assert!(!matches!(parse(&bytes), Ok(Some(_))), "bit {bit}");
        assert!(inbox(bytes).next().is_err(), "bit {bit}");
    }
}

#[test]
fn a_giant_length_is_refused_at_once() {
    for len in [FRAME_MAX as u32 + 1, u32::MAX] {
        let mut inbox = inbox(len.to_le_bytes().to_vec());
        assert!(message_of(inbox.next().unwrap_err()).contains("a frame claims"));
    }
}

#[test]
fn a_message_of_any_length_comes_back() {
    for len in [
        0,
        1,
        PART - 1,
        PART,
        FRAME_MAX - 20,
        FRAME_MAX,
        FRAME_MAX + 1,
        2 * PART + 3,
    ] {
        let tail: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let mut bytes = Vec::new();
        put_message(&mut bytes, &"head", &tail).unwrap();
        put_message(&mut bytes, &7u32, &[]).unwrap();
        let mut inbox = inbox(bytes);
        let Incoming::Message(message) = inbox.next().unwrap() else {
            panic!("no message of {len}");
        };
        let (head, rest) = decode::<String>(message).unwrap();
        assert_eq!(head, "head");
        assert!(rest == tail, "{len}");
        let Incoming::Message(message) = inbox.next().unwrap() else {
            panic!("no message after one of {len}");
        };
        assert_eq!(decode::<u32>(message).unwrap().0, 7);
        assert_eq!(inbox.next().unwrap(), Incoming::End);
    }
}

#[test]
fn a_message_too_long_to_send_leaves_no_trace() {
    let mut bytes = frame(Kind::Alive, &[]);
    let before = bytes.clone();
    let error = put_message(&mut bytes, &"head", &vec![0; MESSAGE_MAX]).unwrap_err();
    assert!(matches!(error, Error::Refused(_)));
    assert_eq!(bytes, before);
}

#[test]
fn pieces_are_bounded_and_belong_together() {
    let endless = frame(Kind::Part, &vec![0; PART]).repeat(4);
    assert!(message_of(inbox(endless).next().unwrap_err()).contains("too long"));
    let mut torn = frame(Kind::Part, b"half");
    torn.extend(frame(Kind::Data, b"\0\0\0\0"));
    assert!(message_of(inbox(torn).next().unwrap_err()).contains("interrupted"));
    let empty = frame(Kind::Part, b"").repeat(3);
    assert!(inbox(empty).next().is_err());
}

#[test]
fn noise_before_the_protocol_is_quoted() {
    let noises: [(&[u8], &str); 3] = [
        (
            b"Welcome to the NAS\nLast login: today\n",
            "Welcome to the NAS\\nLast",
        ),
        (b"x", "\"x\""),
        (b"\x89thrice!", "\\x89thrice!"),
    ];
    for (noise, shown) in noises {
        let error = message_of(inbox(noise.into()).expect_magic().unwrap_err());
        assert!(
            error.contains("printed \"") && error.contains(shown),
            "{error}"
        );
        assert!(error.contains(".bashrc"), "{error}");
    }
    let nothing = inbox(Vec::new()).expect_magic().unwrap_err();
    assert!(message_of(nothing).contains("before it spoke"));
    let mut good = inbox([MAGIC.as_slice(), &frame(Kind::Alive, &[])].concat());
    good.expect_magic().unwrap();
    assert_eq!(good.next().unwrap(), Incoming::End);
}

#[test]
fn silence_ends_the_wait() {
    let (reader, writer) = pipe().unwrap();
    let mut inbox = Inbox::new(reader, Duration::from_millis(150));
    let start = Instant::now();
    assert!(message_of(inbox.next().unwrap_err()).contains("silent"));
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(writer);
}

/// Counts writes and keeps what was written.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<(usize, Vec<u8>)>>);

impl Write for Recorder {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut seen = lock(&self.0);
        seen.0 += 1;
        seen.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn many_small_messages_are_few_writes() {
    let outbox = Outbox::default();
    let recorder = Recorder::default();
    thread::scope(|scope| {
        scope.spawn(|| outbox.run(recorder.clone(), None, LIMIT));
        for n in 0..20_000u32 {
            outbox.send(Urgency::Soon, &(n, [7u8; 30])).unwrap();
        }
        outbox.close();
    });
    let (writes, bytes) = std::mem::take(&mut *lock(&recorder.0));
    assert!(writes < 2_000, "{writes} writes");
    assert_eq!(outbox.sent(), bytes.len() as u64);
    let mut inbox = inbox(bytes);
    for n in 0..20_000u32 {
        let Incoming::Message(message) = inbox.next().unwrap() else {
            panic!("{n}");
        };
        assert_eq!(decode::<(u32, [u8; 30])>(message).unwrap().0.0, n);
    }
    assert_eq!(inbox.next().unwrap(), Incoming::End);
}

#[test]
fn what_is_packed_comes_out_as_it_went_in() {
    let outbox = Outbox::default();
    outbox.set_packing(Packing::Always);
    let recorder = Recorder::default();
    let long = vec![b'x'; MESSAGE_MAX - 100];
    thread::scope(|scope| {
        scope.spawn(|| outbox.run(recorder.clone(), None, LIMIT));
        for n in 0..2_000u32 {
            outbox.send(Urgency::Soon, &(n, [7u8; 30])).unwrap();
            outbox.send_data(n, &[n as u8; 1000]).unwrap();
        }
        // In pieces, and over several packs.
        outbox
            .send_then(Urgency::Now, 1u32, &long, |_, put| assert!(put.is_ok()))
            .unwrap();
        outbox.close();
    });
    let (_, bytes) = std::mem::take(&mut *lock(&recorder.0));
    assert!(bytes.len() < 400_000, "{}", bytes.len());
    for cut in [1, bytes.len() / 2, bytes.len() - 1] {
        let mut inbox = inbox(bytes[..cut].to_vec());
        let end = loop {
            match inbox.next() {
                Ok(Incoming::End) => panic!("an end that is none, cut at {cut}"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(message_of(end).contains("middle of a frame"));
    }
    let mut inbox = inbox(bytes);
    for n in 0..2_000u32 {
        let Incoming::Message(message) = inbox.next().unwrap() else {
            panic!("{n}");
        };
        assert_eq!(decode::<(u32, [u8; 30])>(message).unwrap().0.0, n);
        let data = vec![n as u8; 1000];
        assert_eq!(inbox.next().unwrap(), Incoming::Data(n, &data));
    }
    let Incoming::Message(message) = inbox.next().unwrap() else {
        panic!("the long one");
    };
    assert_eq!(decode::<u32>(message).unwrap(), (1, &long[..]));
    assert_eq!(inbox.next().unwrap(), Incoming::End);
}

#[test]
fn a_pack_is_no_way_around_the_rules() {
    let pack = |frames: &[u8]| frame(Kind::Packed, &zstd::bulk::compress(frames, 1).unwrap());
    let whole = frame(Kind::Message, b"hello");
    let refused = |bytes: Vec<u8>| message_of(inbox(bytes).next().unwrap_err());
    assert!(refused(pack(&pack(&whole))).contains("within a pack"));
    assert!(refused([pack(&whole[..7]), whole.clone()].concat()).contains("interrupted"));
    assert!(refused(frame(Kind::Packed, b"no pack")).contains("cannot be unpacked"));
    let halves = [pack(&whole[..7]), pack(&whole[7..])].concat();
    assert_eq!(inbox(halves).next().unwrap(), Incoming::Message(b"hello"));
}

#[test]
fn an_idle_side_says_that_it_lives() {
    let outbox = Outbox::default();
    let recorder = Recorder::default();
    thread::scope(|scope| {
        scope.spawn(|| outbox.run(recorder.clone(), None, Duration::from_millis(10)));
        while lock(&recorder.0).1.is_empty() {
            thread::sleep(Duration::from_millis(5));
        }
        outbox.close();
    });
    assert!(lock(&recorder.0).1.starts_with(&frame(Kind::Alive, &[])));
}

#[test]
fn a_limit_is_kept() {
    let outbox = Outbox::default();
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| outbox.run(std::io::sink(), Some(400_000), LIMIT));
        outbox.send_data(1, &[0; 200_000]).unwrap();
        outbox.close();
    });
    // The burst is worth a tenth of a second.
    assert!(
        start.elapsed() >= Duration::from_millis(380),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn senders_wait_for_a_slow_writer_and_hear_of_a_broken_one() {
    let (reader, writer) = pipe().unwrap();
    let outbox = Outbox::default();
    thread::scope(|scope| {
        scope.spawn(|| outbox.run(writer, None, LIMIT));
        let sender = scope.spawn(|| {
            let mut sent = 0;
            while outbox.send_data(1, &[0; CHUNK]).is_ok() {
                sent += 1;
            }
            sent
        });
        thread::sleep(Duration::from_millis(100));
        drop(reader);
        // What the writer holds, what is unwritten, and what the pipe took.
        assert!(sender.join().unwrap() <= 2 * (UNWRITTEN_MAX / CHUNK + 2));
    });
    let error = outbox.send_data(1, &[]).unwrap_err();
    assert!(message_of(error).contains("writing to the far side"));
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut inbox = inbox(bytes);
        while let Ok(incoming) = inbox.next() {
            if incoming == Incoming::End {
                break;
            }
        }
    }

    #[test]
    fn frames_come_back_however_they_are_read(
        payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..20)
    ) {
        let mut bytes = Vec::new();
        for payload in &payloads {
            put_raw(&mut bytes, Kind::Data, &[&[1, 0, 0, 0], payload]);
        }
        let mut inbox = inbox(bytes);
        for payload in &payloads {
            prop_assert_eq!(inbox.next().unwrap(), Incoming::Data(1, payload));
        }
        prop_assert_eq!(inbox.next().unwrap(), Incoming::End);
    }

    #[test]
    fn a_damaged_message_is_refused_or_understood(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300), first in 0u8..14
    ) {
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        // No panic, and nothing is allocated by a length that only claims to be.
        let _ = decode::<crate::message::ToAgent>(&bytes);
        let _ = decode::<crate::message::ToHost>(&bytes);
    }
}
