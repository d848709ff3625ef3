//! A pickle becomes an inert graph.
//!
//! A pickle is a program for a small stack machine that builds objects and may call any function of
//! any Python module, which is how a hostile file takes over whoever loads it. This machine calls
//! nothing. A call is kept as a node that names the function and its arguments; what the call means
//! is for the reader of the graph to say, and it knows but a handful of functions. A function that
//! isn't on the caller's closed list ends the reading at once.
//!
//! Format: `pickletools.py` and `Lib/pickle.py` of CPython. Only the opcodes that torch and numpy
//! write in protocols 2 to 5 are known.
//!
//! # Invariants
//!
//! - Nodes lie in one arena and refer to each other by index: depth and cycles cost nothing,
//!   neither to build nor to drop, and whoever reads the graph goes down by its own finite pattern.
//! - Texts and byte strings borrow from the file. An opcode adds at most one node and moves what
//!   others pushed, so memory is bounded by the number of opcodes, and that by [`OPCODES_MAX`].
//! - What lies below the last mark can't be popped, so a mark always splits the stack.

mod machine;
#[cfg(test)]
mod tests;

use super::ReadError;
use super::input::Input;
use machine::Machine;

/// The most opcodes of a pickle. A tensor takes about 35, so this is enough for 30,000 of them.
const OPCODES_MAX: usize = 1 << 20;

/// The graph that a pickle describes. `G` is the caller's list of functions.
#[derive(Debug)]
pub(super) struct Pickle<'a, G> {
    nodes: Arena<'a, G>,
    root: NodeId,
}

/// All nodes, each with the byte at which its opcode stands.
type Arena<'a, G> = Vec<(usize, Node<'a, G>)>;

/// A node's place in the arena of its pickle.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeId(u32);

/// An object, or the recipe for one.
#[derive(Debug)]
pub(super) enum Node<'a, G> {
    None,
    Bool(bool),
    Int(i64),
    /// A float; nobody asks which.
    Float,
    Text(&'a str),
    Bytes(&'a [u8]),
    Tuple(Vec<NodeId>),
    List(Vec<NodeId>),
    Dict(Vec<(NodeId, NodeId)>),
    /// A function or class of the caller's list.
    Global(G),
    Call(Call<G>),
    /// An object that the pickle leaves to its surroundings, by a description.
    Persistent(NodeId),
}

/// A call that isn't made.
#[derive(Debug)]
pub(super) struct Call<G> {
    pub function: G,
    /// A tuple.
    args: NodeId,
    /// What is handed to the new object's `__setstate__`.
    pub state: Option<NodeId>,
    /// What is put into the new object by key.
    pub items: Vec<(NodeId, NodeId)>,
}

/// Why a pickle can't be read.
#[derive(Debug)]
pub(super) struct PickleError {
    /// Where the opcode begins.
    pub offset: usize,
    pub kind: PickleFault,
    pub reason: String,
}

/// Whether a pickle is broken, or whole and not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PickleFault {
    Damaged,
    Refused,
}

// === impl Pickle ===

impl<'a, G: Copy> Pickle<'a, G> {
    /// Reads a pickle that fills `data`. `known` is the closed list of functions: it maps a module
    /// and a name to the caller's own word for them.
    pub fn read(
        data: &'a [u8],
        known: &dyn Fn(&str, &str) -> Option<G>,
    ) -> Result<Pickle<'a, G>, PickleError> {
        let (nodes, root) = Machine::new(data, known).run()?;
        Ok(Pickle { nodes, root })
    }

    pub fn root(&self) -> NodeId {
        self.root
    }

    pub fn node(&self, id: NodeId) -> &Node<'a, G> {
        &self.nodes.get(id.0 as usize).expect("an id is only made for a node of its arena").1
    }

    /// Returns where the opcode stands that made a node.
    pub fn offset(&self, id: NodeId) -> usize {
        self.nodes.get(id.0 as usize).map_or(0, |node| node.0)
    }

    pub fn size(&self, id: NodeId) -> Option<usize> {
        match self.node(id) {
            Node::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    pub fn text(&self, id: NodeId) -> Option<&'a str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn tuple(&self, id: NodeId) -> Option<&[NodeId]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Returns a call and its arguments.
    pub fn call(&self, id: NodeId) -> Option<(&Call<G>, &[NodeId])> {
        match self.node(id) {
            Node::Call(call) => Some((call, self.tuple(call.args)?)),
            _ => None,
        }
    }

    /// Returns the sizes in a tuple of at most so many.
    pub fn sizes(&self, id: NodeId, most: usize) -> Option<Vec<usize>> {
        let items = self.tuple(id).filter(|items| items.len() <= most)?;
        items.iter().map(|&item| self.size(item)).collect()
    }
}

// === impl PickleError ===

impl PickleError {
    /// Returns the error for a file in which the pickle lies at `place`.
    pub fn within(self, input: &Input, place: &str) -> ReadError {
        let place = format!("{place}, byte {}", self.offset);
        match self.kind {
            PickleFault::Damaged => input.damaged(place, self.reason),
            PickleFault::Refused => input.refused(place, self.reason),
        }
    }
}
