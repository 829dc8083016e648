//! The parts of a module that the checks and the reckoning of its stack look at.

use wasmparser::{
    CompositeInnerType, ConstExpr, ElementItems, ElementSectionReader, ExternalKind, FuncType,
    FunctionBody, MemoryType, Operator, Parser, Payload, TableInit, TableType, TypeRef,
};

use super::abi;

const PAGE_BYTES: u64 = 64 << 10;

/// What one pass over the module gathers, its code left unread.
#[derive(Default)]
pub(super) struct Outline<'a> {
    pub(super) manifests: Vec<&'a [u8]>,
    pub(super) types: Vec<Option<FuncType>>,
    pub(super) imports: Vec<(&'a str, &'a str, TypeRef)>,
    /// Type indices of imported and own functions, in index order.
    pub(super) functions: Vec<u32>,
    pub(super) tables: Vec<TableType>,
    pub(super) memories: Vec<MemoryType>,
    pub(super) globals: u64,
    pub(super) exports: Vec<(&'a str, ExternalKind, u32)>,
    pub(super) has_start: bool,
    pub(super) bodies: Vec<FunctionBody<'a>>,
    /// Functions that are named outside of code, and so may stand in a table.
    pub(super) referenced: Vec<u32>,
}

impl<'a> Outline<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> wasmparser::Result<Outline<'a>> {
        let mut outline = Outline::default();
        for payload in Parser::new(0).parse_all(bytes) {
            outline.add(payload?)?;
        }
        Ok(outline)
    }

    fn add(&mut self, payload: Payload<'a>) -> wasmparser::Result<()> {
        match payload {
            Payload::CustomSection(section) if section.name() == abi::MANIFEST_SECTION => {
                self.manifests.push(section.data());
            }
            Payload::TypeSection(groups) => {
                for group in groups {
                    for ty in group?.into_types() {
                        self.types.push(match ty.composite_type.inner {
                            CompositeInnerType::Func(ty) => Some(ty),
                            _ => None,
                        });
                    }
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    if let TypeRef::Func(ty) = import.ty {
                        self.functions.push(ty);
                    }
                    self.imports.push((import.module, import.name, import.ty));
                }
            }
            Payload::FunctionSection(types) => {
                for ty in types {
                    self.functions.push(ty?);
                }
            }
            Payload::TableSection(tables) => {
                for table in tables {
                    let table = table?;
                    self.tables.push(table.ty);
                    if let TableInit::Expr(first) = table.init {
                        self.refer(&first)?;
                    }
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    self.memories.push(memory?);
                }
            }
            Payload::GlobalSection(globals) => {
                self.globals = u64::from(globals.count());
                for global in globals {
                    self.refer(&global?.init_expr)?;
                }
            }
            Payload::ElementSection(segments) => self.add_elements(segments)?,
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    self.exports.push((export.name, export.kind, export.index));
                }
            }
            Payload::StartSection { .. } => self.has_start = true,
            Payload::CodeSectionEntry(body) => self.bodies.push(body),
            _ => {}
        }
        Ok(())
    }

    fn add_elements(&mut self, segments: ElementSectionReader<'a>) -> wasmparser::Result<()> {
        for segment in segments {
            match segment?.items {
                ElementItems::Functions(functions) => {
                    for function in functions {
                        self.referenced.push(function?);
                    }
                }
                ElementItems::Expressions(_, elements) => {
                    for element in elements {
                        self.refer(&element?)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Notes the functions that a constant names.
    fn refer(&mut self, constant: &ConstExpr<'a>) -> wasmparser::Result<()> {
        for operator in constant.get_operators_reader() {
            if let Operator::RefFunc { function_index } = operator? {
                self.referenced.push(function_index);
            }
        }
        Ok(())
    }

    pub(super) fn export(&self, name: &str) -> Option<(ExternalKind, u32)> {
        self.exports.iter().find(|export| export.0 == name).map(|export| (export.1, export.2))
    }

    pub(super) fn function_type(&self, index: u32) -> Option<&FuncType> {
        self.type_at(*self.functions.get(index as usize)?)
    }

    pub(super) fn type_at(&self, index: u32) -> Option<&FuncType> {
        self.types.get(index as usize)?.as_ref()
    }

    pub(super) fn initial_memory_bytes(&self) -> u64 {
        self.memories.first().map_or(0, |memory| memory.initial.saturating_mul(PAGE_BYTES))
    }
}
