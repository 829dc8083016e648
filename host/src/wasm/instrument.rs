//! A limit on the depth of calls, put into the code itself.
//!
//! How deep native code gets before its stack ends depends on the architecture and the compiler.
//! What a command comes to must not. So each function that can come to call itself takes its frame,
//! as [`frame`](super::frame) reckons it, off a counter when it is entered and puts it back when it
//! returns; below zero it traps. The counter is a global of the instance, which the host sets
//! whenever it enters one. Other functions stay as they are, and pay nothing.
//!
//! ```text
//! global.get $left   i32.const FRAME   i32.sub   global.set $left
//! global.get $left   i32.const 0       i32.lt_s  if unreachable end
//! block (results)
//!   the function as it was, with `br` to this block for `return`
//! end
//! global.get $left   i32.const FRAME   i32.add   global.set $left
//! ```
//!
//! That is fuel as well: [`GUARD_FUEL`] units for each call of such a function. Everything else is
//! copied byte by byte, since a type, a global and an export are only ever added behind those there
//! are. A trap leaves the counter where it was, but an instance that trapped is never entered again.

use std::borrow::Cow;

use wasm_encoder::{
    BlockType, ConstExpr, Encode, ExportKind, GlobalType, Instruction, Module, RawSection,
    SectionId, ValType,
};
use wasmparser::{FunctionBody, Operator, Parser, Payload};

use super::abi;
use super::call_graph::StackPlan;
use super::outline::Outline;

/// Units of fuel that a guard costs, on the way in and out together.
#[cfg(test)]
pub(super) const GUARD_FUEL: u64 = 12;

/// The module with its guards. One without recursion is left as it is.
pub(super) fn instrument<'a>(
    bytes: &'a [u8],
    outline: &Outline<'_>,
    plan: &StackPlan,
) -> wasmparser::Result<Cow<'a, [u8]>> {
    if plan.guarded.is_empty() {
        return Ok(Cow::Borrowed(bytes));
    }
    let mut rewriter = Rewriter {
        bytes,
        outline,
        plan,
        module: Module::new(),
        result_types: Vec::new(),
        next_function: (outline.functions.len() - outline.bodies.len()) as u32,
        code: Vec::new(),
        has_global: false,
    };
    rewriter.run()?;
    Ok(Cow::Owned(rewriter.module.finish()))
}

struct Rewriter<'a, 'o> {
    bytes: &'a [u8],
    outline: &'o Outline<'o>,
    plan: &'o StackPlan,
    module: Module,
    /// Types that are added, for blocks with the results of functions that have several.
    result_types: Vec<&'o [wasmparser::ValType]>,
    next_function: u32,
    /// The bodies written so far.
    code: Vec<u8>,
    has_global: bool,
}

impl<'a> Rewriter<'a, '_> {
    fn run(&mut self) -> wasmparser::Result<()> {
        for payload in Parser::new(0).parse_all(self.bytes) {
            let payload = payload?;
            // Globals come before exports, which every plugin has.
            if matches!(payload, Payload::ExportSection(_)) && !self.has_global {
                self.section(SectionId::Global, 1, &[], &self.counter());
            }
            match &payload {
                Payload::TypeSection(types) => {
                    self.gather_result_types();
                    let added = self.result_types_encoded();
                    let count = types.count() + self.result_types.len() as u32;
                    let old = self.items(types.range().end, types.original_position());
                    self.section(SectionId::Type, count, old, &added);
                }
                Payload::GlobalSection(globals) => {
                    self.has_global = true;
                    let old = self.items(globals.range().end, globals.original_position());
                    self.section(SectionId::Global, globals.count() + 1, old, &self.counter());
                }
                Payload::ExportSection(exports) => {
                    let old = self.items(exports.range().end, exports.original_position());
                    self.section(SectionId::Export, exports.count() + 1, old, &self.export());
                }
                Payload::CodeSectionStart { .. } => {}
                Payload::CodeSectionEntry(body) => self.body(body)?,
                // Custom sections stay behind: nobody asks for them any more.
                other => {
                    if let Some((id, range)) = other.as_section() {
                        self.module.section(&RawSection { id, data: &self.bytes[range] });
                    }
                }
            }
        }
        Ok(())
    }

    /// The items of a section, its count left out.
    fn items(&self, end: usize, start: usize) -> &'a [u8] {
        &self.bytes[start..end]
    }

    fn section(&mut self, id: SectionId, count: u32, old: &[u8], added: &[u8]) {
        let mut data = Vec::with_capacity(old.len() + added.len() + 5);
        count.encode(&mut data);
        data.extend_from_slice(old);
        data.extend_from_slice(added);
        self.module.section(&RawSection { id: id.into(), data: &data });
    }

    /// The global that counts. The host sets it before it is used.
    fn counter(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let ty = GlobalType { val_type: ValType::I32, mutable: true, shared: false };
        ty.encode(&mut out);
        ConstExpr::i32_const(0).encode(&mut out);
        out
    }

    fn export(&self) -> Vec<u8> {
        let mut out = Vec::new();
        abi::STACK_LEFT.encode(&mut out);
        ExportKind::Global.encode(&mut out);
        self.global().encode(&mut out);
        out
    }

    /// The counter's index: behind all others.
    fn global(&self) -> u32 {
        self.outline.globals as u32
    }

    /// Finds the results that no block can have without a type of its own.
    fn gather_result_types(&mut self) {
        for function in self.plan.guarded.keys() {
            let results = self.outline.function_type(*function).map_or(&[][..], |ty| ty.results());
            if results.len() > 1 && !self.result_types.contains(&results) {
                self.result_types.push(results);
            }
        }
    }

    fn result_types_encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for results in &self.result_types {
            // A function without parameters.
            out.extend_from_slice(&[0x60, 0]);
            results.len().encode(&mut out);
            results.iter().for_each(|result| encoded(*result).encode(&mut out));
        }
        out
    }

    fn block_type(&self, function: u32) -> BlockType {
        match self.outline.function_type(function).map(|ty| ty.results()) {
            None | Some([]) => BlockType::Empty,
            Some([result]) => BlockType::Result(encoded(*result)),
            Some(results) => {
                let added = self.result_types.iter().position(|added| *added == results);
                BlockType::FunctionType((self.outline.types.len() + added.unwrap_or(0)) as u32)
            }
        }
    }

    fn body(&mut self, body: &FunctionBody<'_>) -> wasmparser::Result<()> {
        let function = self.next_function;
        self.next_function += 1;
        match self.plan.guarded.get(&function) {
            None => body.as_bytes().encode(&mut self.code),
            Some(frame) => self.guarded(body, function, *frame)?.encode(&mut self.code),
        }
        if self.next_function == self.outline.functions.len() as u32 {
            let code = std::mem::take(&mut self.code);
            self.section(SectionId::Code, self.outline.bodies.len() as u32, &[], &code);
        }
        Ok(())
    }

    fn guarded(
        &self,
        body: &FunctionBody<'_>,
        function: u32,
        frame: u32,
    ) -> wasmparser::Result<Vec<u8>> {
        let (bytes, start) = (body.as_bytes(), body.range().start);
        let mut operators = body.get_operators_reader()?;
        let mut copied = operators.original_position() - start;
        let mut out = bytes[..copied].to_vec();
        let (global, frame) = (self.global(), frame as i32);
        let put = |out: &mut Vec<u8>, instructions: &[Instruction<'_>]| {
            instructions.iter().for_each(|instruction| instruction.encode(out));
        };
        let left = [Instruction::GlobalGet(global), Instruction::I32Const(frame)];
        put(&mut out, &left);
        put(&mut out, &[Instruction::I32Sub, Instruction::GlobalSet(global)]);
        put(&mut out, &[Instruction::GlobalGet(global), Instruction::I32Const(0)]);
        put(&mut out, &[Instruction::I32LtS, Instruction::If(BlockType::Empty)]);
        put(&mut out, &[Instruction::Unreachable, Instruction::End]);
        put(&mut out, &[Instruction::Block(self.block_type(function))]);
        let mut open_blocks = 0;
        while !operators.eof() {
            let at = operators.original_position() - start;
            match operators.read()? {
                Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                    open_blocks += 1;
                }
                // The last one ends the block that is around it all.
                Operator::End if open_blocks > 0 => open_blocks -= 1,
                Operator::Return => {
                    out.extend_from_slice(&bytes[copied..at]);
                    put(&mut out, &[Instruction::Br(open_blocks)]);
                    copied = operators.original_position() - start;
                }
                _ => {}
            }
        }
        out.extend_from_slice(&bytes[copied..]);
        put(&mut out, &left);
        put(&mut out, &[Instruction::I32Add, Instruction::GlobalSet(global), Instruction::End]);
        Ok(out)
    }
}

/// A type as it is written. References are to functions: there are no others.
fn encoded(ty: wasmparser::ValType) -> ValType {
    match ty {
        wasmparser::ValType::I32 => ValType::I32,
        wasmparser::ValType::I64 => ValType::I64,
        wasmparser::ValType::F32 => ValType::F32,
        wasmparser::ValType::F64 => ValType::F64,
        wasmparser::ValType::V128 => ValType::V128,
        wasmparser::ValType::Ref(_) => ValType::FUNCREF,
    }
}
