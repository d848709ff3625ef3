//! The stack machine that turns opcodes into nodes.

use std::collections::HashMap;

use super::super::input::Quoted;
use super::{Arena, Call, Node, NodeId, OPCODES_MAX, PickleError, PickleFault};

/// The longest name of a module or function. The longest on any list has about 30 bytes.
const GLOBAL_BYTES_MAX: usize = 256;

type Step<T> = Result<T, PickleError>;

/// The stack machine while it runs.
pub(super) struct Machine<'a, 'k, G> {
    data: &'a [u8],
    /// The next byte.
    at: usize,
    /// The byte with the current opcode.
    opcode_at: usize,
    nodes: Arena<'a, G>,
    stack: Vec<NodeId>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, NodeId>,
    known: &'k dyn Fn(&str, &str) -> Option<G>,
}

// === impl Machine ===

impl<'a, 'k, G: Copy> Machine<'a, 'k, G> {
    pub fn new(data: &'a [u8], known: &'k dyn Fn(&str, &str) -> Option<G>) -> Self {
        Machine {
            data,
            at: 0,
            opcode_at: 0,
            nodes: Arena::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            known,
        }
    }

    /// Runs to the end of the pickle, and returns all nodes and the one that is its object.
    pub fn run(mut self) -> Step<(Arena<'a, G>, NodeId)> {
        if self.data.first() != Some(&0x80) {
            return Err(self.refused("it is no pickle of protocol 2 to 5"));
        }
        for _ in 0..OPCODES_MAX {
            self.opcode_at = self.at;
            let opcode = self.array::<1>()?[0];
            if opcode == b'.' {
                return self.stop();
            }
            self.step(opcode)?;
        }
        Err(self.refused("more objects than any weights file has"))
    }

    fn stop(mut self) -> Step<(Arena<'a, G>, NodeId)> {
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return Err(self.damaged("the end comes while objects are unfinished"));
        }
        if self.at != self.data.len() {
            let rest = self.data.len() - self.at;
            return Err(self.damaged(&format!("{rest} bytes follow the end of the pickle")));
        }
        Ok((self.nodes, root))
    }

    fn step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            // PROTO
            0x80 => match self.array()? {
                [2..=5] => Ok(()),
                [n] => Err(self.refused(&format!("pickle protocol {n} isn't known"))),
            },
            // FRAME: only says that so much follows.
            0x95 => {
                let len = u64::from_le_bytes(self.array()?);
                if len > (self.data.len() - self.at) as u64 {
                    return Err(self.truncated(len));
                }
                Ok(())
            }
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(n.into()))
            }
            b'K' => {
                let [n] = self.array()?;
                self.push(Node::Int(n.into()))
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(n.into()))
            }
            0x8a => self.long(),
            b'G' => {
                self.array::<8>()?;
                self.push(Node::Float)
            }
            // BINUNICODE, SHORT_ and 8
            b'X' | 0x8c | 0x8d => {
                let len = self.len(match opcode {
                    0x8c => 1,
                    b'X' => 4,
                    _ => 8,
                })?;
                let bytes = self.take(len)?;
                match std::str::from_utf8(bytes) {
                    Ok(text) => self.push(Node::Text(text)),
                    Err(_) => Err(self.damaged("a text that isn't UTF-8")),
                }
            }
            // BINBYTES, SHORT_ and 8, BYTEARRAY8
            b'B' | b'C' | 0x8e | 0x96 => {
                let len = self.len(match opcode {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                })?;
                let bytes = self.take(len)?;
                self.push(Node::Bytes(bytes))
            }
            // NEXT_BUFFER
            0x97 => Err(self.refused(
                "the numbers are kept outside of the pickle; pickle again without a buffer_callback",
            )),
            // READONLY_BUFFER: wraps what is on the stack, and nobody writes here anyway.
            0x98 => self.top().map(drop),
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0..opcode - 0x84 {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Node::Tuple(items))
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items))
            }
            b']' => self.push(Node::List(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)
            }
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(module, name)
            }
            // STACK_GLOBAL
            0x93 => {
                let name = self.pop()?;
                let module = self.pop()?;
                match (self.get(module), self.get(name)) {
                    (Some(&Node::Text(module)), Some(&Node::Text(name))) => {
                        self.global(module, name)
                    }
                    _ => Err(self.damaged("a function whose name is no text")),
                }
            }
            b'R' => self.reduce(),
            b'b' => self.build(),
            // BINPERSID
            b'Q' => {
                let description = self.pop()?;
                self.push(Node::Persistent(description))
            }
            b'q' => {
                let [key] = self.array()?;
                self.remember(key.into())
            }
            b'r' => {
                let key = u32::from_le_bytes(self.array()?);
                self.remember(key)
            }
            // MEMOIZE: the memo has at most as many entries as there are opcodes.
            0x94 => self.remember(self.memo.len() as u32),
            b'h' => {
                let [key] = self.array()?;
                self.recall(key.into())
            }
            b'j' => {
                let key = u32::from_le_bytes(self.array()?);
                self.recall(key)
            }
            other => Err(self.refused(&format!(
                "opcode {other:#04x} ({}), which no weights file needs",
                other.escape_ascii()
            ))),
        }
    }

    // --- bytes ---

    fn take(&mut self, len: u64) -> Step<&'a [u8]> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        match end.and_then(|end| self.data.get(self.at..end)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(self.truncated(len)),
        }
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        match self.data.get(self.at..).and_then(|rest| rest.first_chunk::<N>()) {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => Err(self.truncated(N as u64)),
        }
    }

    /// Reads a length of so many bytes.
    fn len(&mut self, width: u64) -> Step<u64> {
        let mut len = [0; 8];
        for (to, from) in len.iter_mut().zip(self.take(width)?) {
            *to = *from;
        }
        Ok(u64::from_le_bytes(len))
    }

    /// LONG1: a number of as many bytes as it takes, in two's complement.
    fn long(&mut self) -> Step<()> {
        let len = self.len(1)?;
        let bytes = self.take(len)?;
        if bytes.len() > 8 {
            return Err(self.refused(&format!("a whole number of {len} bytes")));
        }
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let mut n = [if negative { 0xff } else { 0 }; 8];
        for (to, from) in n.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.push(Node::Int(i64::from_le_bytes(n)))
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let line = rest.iter().take(GLOBAL_BYTES_MAX).position(|&byte| byte == b'\n');
        let Some(line) = line.and_then(|len| rest.get(..len)) else {
            return Err(self.damaged("the name of a function doesn't end"));
        };
        self.at += line.len() + 1;
        std::str::from_utf8(line)
            .map_err(|_| self.damaged("the name of a function that isn't UTF-8"))
    }

    // --- stack and memo ---

    fn push(&mut self, node: Node<'a, G>) -> Step<()> {
        // Never more than `OPCODES_MAX`: each opcode pushes at most one node.
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push((self.opcode_at, node));
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Step<NodeId> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.marks.last().copied().unwrap_or(0) => Ok(id),
            _ => Err(self.damaged("an object is missing on the stack")),
        }
    }

    fn pop(&mut self) -> Step<NodeId> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_to_mark(&mut self) -> Step<Vec<NodeId>> {
        let Some(height) = self.marks.pop() else {
            return Err(self.damaged("a mark is missing on the stack"));
        };
        let items = self.stack.get(height..).unwrap_or_default().to_vec();
        self.stack.truncate(height);
        Ok(items)
    }

    fn get(&self, id: NodeId) -> Option<&Node<'a, G>> {
        self.nodes.get(id.0 as usize).map(|node| &node.1)
    }

    fn top_mut(&mut self) -> Step<Option<&mut Node<'a, G>>> {
        let id = self.top()?;
        Ok(self.nodes.get_mut(id.0 as usize).map(|node| &mut node.1))
    }

    fn remember(&mut self, key: u32) -> Step<()> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Step<()> {
        match self.memo.get(&key) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => Err(self.damaged(&format!("object {key} is used before it is made"))),
        }
    }

    // --- objects ---

    fn append(&mut self, mut items: Vec<NodeId>) -> Step<()> {
        let Some(Node::List(list)) = self.top_mut()? else {
            return Err(self.damaged("something is appended to what is no list"));
        };
        list.append(&mut items);
        Ok(())
    }

    fn set_items(&mut self, items: &[NodeId]) -> Step<()> {
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(self.damaged("a key without a value"));
        };
        let Some(Node::Dict(into) | Node::Call(Call { items: into, .. })) = self.top_mut()? else {
            return Err(self.damaged("keys are set in what has none"));
        };
        into.extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        match (self.known)(module, name) {
            Some(function) => self.push(Node::Global(function)),
            None => Err(self.refused(&format!(
                "it asks for {}, which no weights file needs; nothing was run, and a file that asks \
                 for such things may be an attack",
                Quoted(&format!("{module}.{name}"))
            ))),
        }
    }

    fn reduce(&mut self) -> Step<()> {
        let args = self.pop()?;
        let function = self.pop()?;
        match (self.get(function), self.get(args)) {
            (Some(&Node::Global(function)), Some(Node::Tuple(_))) => {
                self.push(Node::Call(Call { function, args, state: None, items: Vec::new() }))
            }
            (Some(Node::Global(_)), _) => Err(self.damaged("arguments that are no tuple")),
            _ => Err(self.refused("it calls something that is no function of a known module")),
        }
    }

    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        let Some(Node::Call(Call { state: slot @ None, .. })) = self.top_mut()? else {
            let reason = "it sets the state of an object that has none, or for a second time";
            return Err(self.refused(reason));
        };
        *slot = Some(state);
        Ok(())
    }

    // --- errors ---

    fn damaged(&self, reason: &str) -> PickleError {
        let kind = PickleFault::Damaged;
        PickleError { offset: self.opcode_at, kind, reason: reason.into() }
    }

    fn refused(&self, reason: &str) -> PickleError {
        let kind = PickleFault::Refused;
        PickleError { offset: self.opcode_at, kind, reason: reason.into() }
    }

    fn truncated(&self, wanted: u64) -> PickleError {
        let left = self.data.len().saturating_sub(self.at);
        self.damaged(&format!(
            "{wanted} bytes should follow where {left} are left; is the file truncated?"
        ))
    }
}
