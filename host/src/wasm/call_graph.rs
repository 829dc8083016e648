//! Who calls whom, and what follows for the stack.
//!
//! Calls by name are known. A call through a table can reach every function of its type that stands
//! in a table or could be put into one; each type is a node of the graph for that, so that a thousand
//! calls through tables to a thousand functions are two thousand edges.
//!
//! Functions that can come to call themselves are the strongly connected components of that graph.
//! They get a guard that counts at run time ([`instrument`](super::instrument)). All others are on
//! the stack at most once, so that their frames together are bounded by the heaviest path.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::abi;
use super::frame::Code;
use super::outline::Outline;

/// What a module's functions ask of the stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StackPlan {
    /// The functions that can come to call themselves, by index, and their frames in bytes.
    pub(super) guarded: BTreeMap<u32, u32>,
    /// The most that all others take together, in bytes.
    pub(super) others_bytes: u64,
    /// The largest frame, in bytes, and whose it is.
    pub(super) largest_frame: (u64, u32),
    /// The most values that can meet in one function, and which.
    pub(super) most_merges: (u64, u32),
    /// What it takes to compile all of them: the time grows with the square of such values.
    pub(super) merging_work: u64,
}

impl StackPlan {
    /// Reads a valid module.
    pub(super) fn of(bytes: &[u8], outline: &Outline<'_>) -> wasmparser::Result<StackPlan> {
        let code = Code::read(bytes, outline)?;
        let imported = outline.functions.len() - code.functions.len();
        let successors = edges(&code, outline, imported);
        let frame_of = |node: u32| {
            let own = (node as usize).checked_sub(imported);
            own.and_then(|own| code.functions.get(own)).map_or(0, |f| f.frame_bytes)
        };
        let mut plan = StackPlan::default();
        for (index, function) in (imported as u32..).zip(&code.functions) {
            plan.most_merges = plan.most_merges.max((function.merges, index));
            let work = function.merges.saturating_mul(function.merges);
            plan.merging_work = plan.merging_work.saturating_add(work);
        }
        let mut below = vec![0; successors.len()];
        for component in components(&successors) {
            let beyond = component.iter().flat_map(|node| &successors[*node as usize]);
            let deepest = beyond.map(|next| below[*next as usize]).max().unwrap_or(0);
            let first = component[0];
            let recursive = component.len() > 1 || successors[first as usize].contains(&first);
            let weight = if recursive { 0 } else { frame_of(first) };
            for node in component {
                below[node as usize] = deepest + weight;
                let frame = frame_of(node);
                if recursive && frame > 0 {
                    plan.guarded.insert(node, u32::try_from(frame).unwrap_or(u32::MAX));
                }
                plan.largest_frame = plan.largest_frame.max((frame, node));
            }
        }
        let entries = [abi::APPLY, abi::QUERY, abi::MIGRATE];
        let entries = entries.iter().filter_map(|name| outline.export(name));
        let taken = entries.filter_map(|(_, index)| below.get(index as usize));
        plan.others_bytes = taken.copied().max().unwrap_or(0);
        Ok(plan)
    }
}

/// For each function, and behind them for each type, what it leads to.
fn edges(code: &Code, outline: &Outline<'_>, imported: usize) -> Vec<Vec<u32>> {
    // Types with the same parameters and results are one, wherever they are declared.
    let mut nodes = HashMap::new();
    let first = outline.functions.len() as u32;
    let mut node_of = |ty: u32| {
        let next = first + nodes.len() as u32;
        outline.type_at(ty).map(|ty| *nodes.entry(ty).or_insert(next))
    };
    let mut successors: Vec<Vec<u32>> = vec![Vec::new(); imported];
    for function in &code.functions {
        let by_table = function.table_calls.iter().filter_map(|ty| node_of(*ty));
        let by_table: BTreeSet<u32> = by_table.collect();
        successors.push(function.calls.iter().copied().chain(by_table).collect());
    }
    let mut reachable: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let referenced: BTreeSet<u32> =
        outline.referenced.iter().chain(&code.referenced).copied().collect();
    for function in referenced {
        let ty = outline.functions.get(function as usize);
        if let Some(node) = ty.and_then(|ty| node_of(*ty)) {
            reachable.entry(node).or_default().push(function);
        }
    }
    successors.resize(first as usize + nodes.len(), Vec::new());
    for (node, functions) in reachable {
        successors[node as usize] = functions;
    }
    successors
}

/// The strongly connected components of a graph, each after those that it leads to: Tarjan's
/// algorithm, with a stack of its own, for graphs as deep as an author cares to make them.
fn components(successors: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let mut search = Search {
        order: vec![UNSEEN; successors.len()],
        lowest: vec![0; successors.len()],
        done: vec![false; successors.len()],
        open: Vec::new(),
        seen: 0,
        found: Vec::new(),
    };
    for root in 0..successors.len() as u32 {
        if search.order[root as usize] == UNSEEN {
            search.from(root, successors);
        }
    }
    search.found
}

const UNSEEN: u32 = u32::MAX;

struct Search {
    /// When each node was first seen.
    order: Vec<u32>,
    /// The earliest node that is still open and that each can come back to.
    lowest: Vec<u32>,
    /// Whether each node's component is known.
    done: Vec<bool>,
    /// Nodes whose component is not known yet.
    open: Vec<u32>,
    seen: u32,
    found: Vec<Vec<u32>>,
}

impl Search {
    fn from(&mut self, root: u32, successors: &[Vec<u32>]) {
        let mut path = vec![(self.enter(root), 0)];
        while let Some((node, tried)) = path.last_mut() {
            let at = *node as usize;
            let Some(next) = successors[at].get(*tried).map(|next| *next as usize) else {
                self.leave(at as u32);
                path.pop();
                if let Some((parent, _)) = path.last() {
                    let parent = *parent as usize;
                    self.lowest[parent] = self.lowest[parent].min(self.lowest[at]);
                }
                continue;
            };
            *tried += 1;
            if self.order[next] == UNSEEN {
                path.push((self.enter(next as u32), 0));
            } else if !self.done[next] {
                self.lowest[at] = self.lowest[at].min(self.order[next]);
            }
        }
    }

    fn enter(&mut self, node: u32) -> u32 {
        self.order[node as usize] = self.seen;
        self.lowest[node as usize] = self.seen;
        self.seen += 1;
        self.open.push(node);
        node
    }

    /// All that `node` leads to is seen. If it cannot come back to an earlier node, then it and all
    /// that were opened since are a component.
    fn leave(&mut self, node: u32) {
        if self.lowest[node as usize] != self.order[node as usize] {
            return;
        }
        let start = self.open.iter().rposition(|open| *open == node).unwrap_or(0);
        let component = self.open.split_off(start);
        component.iter().for_each(|node| self.done[*node as usize] = true);
        self.found.push(component);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(successors: &[&[u32]]) -> Vec<Vec<u32>> {
        let successors: Vec<Vec<u32>> = successors.iter().map(|next| next.to_vec()).collect();
        let mut found = components(&successors);
        found.iter_mut().for_each(|component| component.sort_unstable());
        found
    }

    #[test]
    fn components_come_after_those_they_lead_to() {
        assert_eq!(sorted(&[&[1], &[2], &[]]), [[2], [1], [0]]);
        // Two circles, one leading to the other, and a way around both.
        assert_eq!(sorted(&[&[1, 4], &[0, 2], &[3], &[2], &[]]), [vec![2, 3], vec![4], vec![0, 1]]);
        assert_eq!(sorted(&[&[0]]), [[0]]);
        assert_eq!(sorted(&[]), Vec::<Vec<u32>>::new());
    }

    #[test]
    fn a_chain_of_a_million_needs_no_deep_stack() {
        let successors: Vec<Vec<u32>> =
            (1..=1_000_000).map(|next| vec![next % 1_000_000]).collect();
        assert_eq!(components(&successors).len(), 1);
    }
}
