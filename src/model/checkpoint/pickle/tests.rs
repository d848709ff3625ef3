use super::super::fixtures::PickleWriter;
use super::*;

fn known(module: &str, name: &str) -> Option<u8> {
    (module == "m" && name == "f").then_some(7)
}

fn read(data: &[u8]) -> Result<Pickle<'_, u8>, PickleError> {
    Pickle::read(data, &known)
}

#[track_caller]
fn refuses(data: &[u8], offset: usize, kind: PickleFault, reason: &str) {
    let error = read(data).unwrap_err();
    assert_eq!((error.offset, error.kind), (offset, kind), "{}", error.reason);
    assert!(error.reason.contains(reason), "{}", error.reason);
}

#[test]
fn reads_plain_objects() {
    let pickle =
        read(b"\x80\x04]\x94(NK\x05M\x01\x02J\xff\xff\xff\xff\x8a\x02\x00\xffC\x01xe.").unwrap();
    let Node::List(items) = pickle.node(pickle.root()) else { panic!() };
    let items: Vec<_> = items.iter().map(|&id| pickle.node(id)).collect();
    assert!(matches!(
        items.as_slice(),
        [
            Node::None,
            Node::Int(5),
            Node::Int(513),
            Node::Int(-1),
            Node::Int(-256),
            Node::Bytes(b"x")
        ]
    ));
}

#[test]
fn a_call_is_kept_and_not_made() {
    let pickle = read(b"\x80\x02cm\nf\nK\x01\x85R}b.").unwrap();
    let (call, args) = pickle.call(pickle.root()).unwrap();
    assert_eq!(call.function, 7);
    assert!(matches!(args, &[arg] if pickle.size(arg) == Some(1)));
    assert!(call.state.is_some());
}

#[test]
fn a_function_that_is_not_on_the_list_is_refused_by_its_name() {
    let refused = PickleFault::Refused;
    refuses(b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.", 2, refused, "`os.system`");
    refuses(b"\x80\x02cbuiltins\neval\n.", 2, refused, "`builtins.eval`");
    refuses(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", 17, refused, "`posix.system`");
    // A known function of another module, and a known module's other function.
    refuses(b"\x80\x02cn\nf\n.", 2, refused, "`n.f`");
    refuses(b"\x80\x02cm\ng\n.", 2, refused, "`m.g`");
    refuses(b"\x80\x04\x8c\x01m\x8c\x03f.g\x93.", 10, refused, "`m.f.g`");
    // The older and the rarer ways to call.
    refuses(b"\x80\x02(ios\nsystem\n.", 3, refused, "0x69");
    refuses(b"\x80\x02(cm\nf\no.", 8, refused, "0x6f");
    refuses(b"\x80\x02cm\nf\n)\x81.", 8, refused, "0x81");
    refuses(b"\x80\x02\x82\x01.", 2, refused, "0x82");
}

#[test]
fn a_call_of_what_is_no_function_is_refused() {
    refuses(b"\x80\x02K\x01)R.", 5, PickleFault::Refused, "no function");
    // Not even the result of a call is called.
    refuses(b"\x80\x02cm\nf\n)R)R.", 10, PickleFault::Refused, "no function");
    refuses(b"\x80\x02cm\nf\nNR.", 8, PickleFault::Damaged, "no tuple");
}

#[test]
fn buffers_outside_and_older_protocols_are_refused() {
    refuses(b"\x80\x05\x97.", 2, PickleFault::Refused, "buffer_callback");
    refuses(b"(lp0\n.", 0, PickleFault::Refused, "protocol 2 to 5");
    refuses(b"", 0, PickleFault::Refused, "protocol 2 to 5");
    refuses(b"\x80\x06.", 0, PickleFault::Refused, "protocol 6");
}

#[test]
fn the_stack_below_a_mark_is_out_of_reach() {
    refuses(b"\x80\x02N(\x85.", 4, PickleFault::Damaged, "missing on the stack");
    refuses(b"\x80\x02N(q\x01.", 4, PickleFault::Damaged, "missing on the stack");
    refuses(b"\x80\x02Nt.", 3, PickleFault::Damaged, "mark is missing");
    refuses(b"\x80\x02.", 2, PickleFault::Damaged, "missing on the stack");
    refuses(b"\x80\x02NN.", 4, PickleFault::Damaged, "unfinished");
    refuses(b"\x80\x02(N.", 4, PickleFault::Damaged, "unfinished");
}

#[test]
fn lengths_are_compared_with_what_is_left() {
    for data in [
        b"\x80\x04X\xff\xff\xff\xffabc".as_slice(),
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc",
        b"\x80\x04B\xff\xff\xff\xffabc",
        b"\x80\x04\x8e\x00\x00\x00\x00\x00\x00\x00\x80abc",
        b"\x80\x05\x96\x04\x00\x00\x00\x00\x00\x00\x00abc",
        b"\x80\x04\x95\x04\x00\x00\x00\x00\x00\x00\x00abc",
        b"\x80\x04J\x00\x00",
        b"\x80\x04N",
        b"\x80",
    ] {
        let error = read(data).unwrap_err();
        assert!(error.reason.contains("truncated"), "{}", error.reason);
    }
    refuses(b"\x80\x02\x8a\x09123456789.", 2, PickleFault::Refused, "9 bytes");
    refuses(b"\x80\x02N.N", 3, PickleFault::Damaged, "1 bytes follow");
}

#[test]
fn damage_is_named_with_its_place() {
    refuses(b"\x80\x02h\x05.", 2, PickleFault::Damaged, "object 5 is used before");
    refuses(b"\x80\x02NNa.", 4, PickleFault::Damaged, "no list");
    refuses(b"\x80\x02](NNu.", 6, PickleFault::Damaged, "keys are set");
    refuses(b"\x80\x02}(Nu.", 5, PickleFault::Damaged, "without a value");
    refuses(b"\x80\x02NNb.", 4, PickleFault::Refused, "state");
    refuses(b"\x80\x02cm\nf\n)RNbNb.", 12, PickleFault::Refused, "second time");
    refuses(b"\x80\x02X\x01\x00\x00\x00\xff.", 2, PickleFault::Damaged, "UTF-8");
    refuses(b"\x80\x02cm\nf", 2, PickleFault::Damaged, "doesn't end");
    refuses(
        &[b"\x80\x02c", [b'x'; 300].as_slice()].concat(),
        2,
        PickleFault::Damaged,
        "doesn't end",
    );
    refuses(b"\x80\x04NN\x93.", 4, PickleFault::Damaged, "no text");
}

#[test]
fn cycles_and_depth_are_harmless() {
    // A list in itself, a dict in itself, a call with itself as state.
    for data in [
        b"\x80\x02]q\x00h\x00a.".as_slice(),
        b"\x80\x02}q\x00Nh\x00s.",
        b"\x80\x02cm\nf\n)Rq\x00h\x00b.",
    ] {
        drop(read(data).unwrap());
    }
    // A million lists, each in the next, where a recursive drop would overflow the stack.
    let mut pickle = PickleWriter::new();
    let depth = OPCODES_MAX / 2 - 10;
    pickle = pickle.raw(&b"]".repeat(depth)).raw(&b"a".repeat(depth - 1));
    drop(read(&pickle.end()).unwrap());
    let tuples = PickleWriter::new().raw(b")").raw(&b"\x85".repeat(depth));
    drop(read(&tuples.end()).unwrap());
}

#[test]
fn a_memo_bomb_stays_as_small_as_its_file() {
    // Each list holds the one before it ten times: 10^100 elements if it were unfolded.
    let mut pickle = PickleWriter::new().raw(b"]q\x00");
    for level in 1..100_u8 {
        pickle = pickle.raw(b"](").raw(&[b'h', level - 1].repeat(10)).raw(b"e").raw(&[b'q', level]);
        // Leaves one object on the stack.
        pickle = pickle.raw(b"\x86");
    }
    let data = pickle.end();
    let pickle = read(&data).unwrap();
    assert!(pickle.nodes.len() < data.len());
}

#[test]
fn the_number_of_opcodes_is_limited() {
    let data = PickleWriter::new().raw(&b"N".repeat(OPCODES_MAX)).end();
    let error = read(&data).unwrap_err();
    assert_eq!(error.kind, PickleFault::Refused);
    assert!(error.reason.contains("more objects"), "{}", error.reason);
}
