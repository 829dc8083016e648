//! A plugin that takes commands and does nothing with them.

use wasm_encoder::{
    BlockType, CodeSection, CustomSection, EntityType, ExportKind, ExportSection, Function,
    FunctionSection, ImportSection, Instruction, MemorySection, MemoryType, Module, TypeSection,
    ValType,
};

/// Its module: `apply` and `query` both pull until there is nothing left.
pub(super) fn module() -> Vec<u8> {
    const PULL: u32 = 0;
    const RUN: u32 = 1;
    let mut types = TypeSection::new();
    types.ty().function([ValType::I32, ValType::I32], [ValType::I64]);
    types.ty().function([], []);
    let mut imports = ImportSection::new();
    imports.import("raftkv_v1", "next_command", EntityType::Function(0));
    let mut functions = FunctionSection::new();
    functions.function(1);
    let mut memories = MemorySection::new();
    memories.memory(MemoryType {
        minimum: 1,
        maximum: None,
        memory64: false,
        shared: false,
        page_size_log2: None,
    });
    let mut exports = ExportSection::new();
    exports.export("memory", ExportKind::Memory, 0);
    exports.export("apply", ExportKind::Func, RUN).export("query", ExportKind::Func, RUN);
    let mut run = Function::new([]);
    run.instruction(&Instruction::Loop(BlockType::Empty))
        .instruction(&Instruction::I32Const(0))
        .instruction(&Instruction::I32Const(1 << 16))
        .instruction(&Instruction::Call(PULL))
        .instruction(&Instruction::I64Const(0))
        .instruction(&Instruction::I64GeS)
        .instruction(&Instruction::BrIf(0))
        .instruction(&Instruction::End)
        .instruction(&Instruction::End);
    let mut code = CodeSection::new();
    code.function(&run);
    let manifest = b"name=idle\nversion=1.0.0\nabi=1\n";
    let mut module = Module::new();
    module
        .section(&types)
        .section(&imports)
        .section(&functions)
        .section(&memories)
        .section(&exports)
        .section(&code)
        .section(&CustomSection { name: "raftkv".into(), data: manifest.as_slice().into() });
    module.finish()
}
