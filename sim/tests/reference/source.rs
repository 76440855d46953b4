//! The sources of the workspace as syntax trees, and the few values that defaults are made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, BinOp, Expr, ExprLit, Fields, ImplItem, Item, ItemEnum, ItemImpl, ItemStruct, Lit,
    Meta, Stmt,
};

/// Every source file that is part of a library or program, by its path from the root.
pub struct Sources {
    root: PathBuf,
    files: BTreeMap<PathBuf, syn::File>,
}

impl Sources {
    pub fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut files = BTreeMap::new();
        let mut directories = vec![root.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                if path.is_dir() {
                    if !matches!(name, "target" | ".git" | "tests" | "examples" | "interop") {
                        directories.push(path);
                    }
                } else if name.ends_with(".rs") {
                    let text = fs::read_to_string(&path).unwrap();
                    let file = syn::parse_file(&text).unwrap();
                    files.insert(path.strip_prefix(root).unwrap().to_owned(), file);
                }
            }
        }
        Self { root: root.to_owned(), files }
    }

    pub fn structs(&self) -> impl Iterator<Item = (&Path, &ItemStruct)> {
        self.items().filter_map(|(path, item)| match item {
            Item::Struct(item) => Some((path, item)),
            _ => None,
        })
    }

    pub fn enums(&self) -> impl Iterator<Item = (&Path, &ItemEnum)> {
        self.items().filter_map(|(path, item)| match item {
            Item::Enum(item) => Some((path, item)),
            _ => None,
        })
    }

    fn items(&self) -> impl Iterator<Item = (&Path, &Item)> {
        let files = self.files.iter();
        files.flat_map(|(path, file)| file.items.iter().map(move |item| (path.as_path(), item)))
    }

    /// The one that is nearest to `from`: in its file, else in its crate, else the only one.
    pub fn nearest<'a, T>(
        from: &Path,
        found: impl Iterator<Item = (&'a Path, T)>,
        name: &str,
    ) -> T {
        let mut found: Vec<_> = found.collect();
        let shared = |path: &Path| {
            let both = path.components().zip(from.components());
            both.take_while(|(one, other)| one == other).count()
        };
        found.sort_by_key(|(path, _)| std::cmp::Reverse(shared(path)));
        let is_tie = found.len() > 1 && shared(found[0].0) == shared(found[1].0);
        let places: Vec<_> = found.iter().map(|(path, _)| path.display().to_string()).collect();
        assert!(!is_tie, "{}: `{name}` may be in any of {places:?}", from.display());
        let first = found.into_iter().next();
        first.unwrap_or_else(|| panic!("{}: there is no `{name}`", from.display())).1
    }

    /// The value of a constant, or of a field of a type's `Default`, as `Type::field` names it.
    pub fn value(&self, from: &Path, name: &str) -> Value {
        if let Some((owner, field)) = name.split_once("::") {
            return self.default_of(from, owner, field).unwrap_or_else(|| {
                panic!("{}: `{owner}` has no default of `{field}`", from.display())
            });
        }
        let constants = self.items().filter_map(|(path, item)| match item {
            Item::Const(item) if item.ident == name => Some((path, (path, &*item.expr))),
            _ => None,
        });
        let (path, expression) = Self::nearest(from, constants, name);
        self.evaluate(path, expression)
    }

    /// The value that `impl Default for OWNER` gives a field, if there is such an implementation.
    pub fn default_of(&self, from: &Path, owner: &str, field: &str) -> Option<Value> {
        let implementations: Vec<_> = self
            .items()
            .filter_map(|(path, item)| {
                let Item::Impl(item) = item else { return None };
                let (_, of, _) = item.trait_.as_ref()?;
                let is_default = of.segments.last()?.ident == "Default";
                let syn::Type::Path(of) = &*item.self_ty else { return None };
                let is_owner = of.path.segments.last()?.ident == owner;
                (is_default && is_owner).then_some(())?;
                Some((path, (path, given(item, field)?)))
            })
            .collect();
        if implementations.is_empty() {
            return None;
        }
        let (path, expression) = Self::nearest(from, implementations.into_iter(), owner);
        Some(self.evaluate(path, expression))
    }

    /// The numbers that `fn FUNCTION` of a type gives its variants.
    pub fn numbers(&self, path: &Path, owner: &str, function: &str) -> BTreeMap<String, u64> {
        let implementations = self.files[path].items.iter().filter_map(|item| match item {
            Item::Impl(item) if item.trait_.is_none() => Some(item),
            _ => None,
        });
        let functions = implementations
            .filter(|item| matches!(&*item.self_ty, syn::Type::Path(of) if of.path.is_ident(owner)))
            .flat_map(|item| &item.items)
            .filter_map(|item| match item {
                ImplItem::Fn(item) if item.sig.ident == function => item.block.stmts.last(),
                _ => None,
            });
        let mut numbers = BTreeMap::new();
        for statement in functions {
            let Stmt::Expr(Expr::Match(matched), _) = statement else { continue };
            for arm in &matched.arms {
                if let syn::Pat::Path(variant) = &arm.pat {
                    let name = variant.path.segments.last().unwrap().ident.to_string();
                    if let Value::Number(number) = self.evaluate(path, &arm.body) {
                        numbers.insert(name, number);
                    }
                }
            }
        }
        numbers
    }

    /// The titles of a specification's rules.
    pub fn rules(&self, document: &str) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.root.join(document)).unwrap();
        let headings = text.lines().filter_map(|line| line.strip_prefix("### ")?.split_once(' '));
        headings.map(|(rule, title)| (rule.to_owned(), title.to_owned())).collect()
    }

    /// The string literals below `near` that begin with one of these words, outside of tests.
    pub fn literals(&self, near: &str, begin: &[&str]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for path in self.files.keys().filter(|path| path.starts_with(near)) {
            let text = fs::read_to_string(self.root.join(path)).unwrap();
            let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
            let code = joined(code);
            let is_test = path.file_stem().is_some_and(|name| name == "tests");
            for literal in code.split('"').filter(|_| !is_test) {
                let is_one = begin.iter().any(|begin| literal.starts_with(begin));
                let is_whole = !literal.contains('\n') && !literal.ends_with('\\');
                if is_one && is_whole && !begin.contains(&literal) {
                    found.insert(literal.to_owned());
                }
            }
        }
        found
    }

    /// The value that a function without arguments returns.
    pub fn returned(&self, from: &Path, name: &str) -> Value {
        let functions = self.items().filter_map(|(path, item)| match item {
            Item::Fn(item) if item.sig.ident == name => Some((path, (path, item))),
            _ => None,
        });
        let (path, function) = Self::nearest(from, functions, name);
        match function.block.stmts.last() {
            Some(Stmt::Expr(expression, _)) => self.evaluate(path, expression),
            _ => panic!("{}: `{name}` does more than return a value", path.display()),
        }
    }

    fn evaluate(&self, from: &Path, expression: &Expr) -> Value {
        let number = |expression| match self.evaluate(from, expression) {
            Value::Number(number) => number,
            other => panic!("{}: {other:?} is no number", from.display()),
        };
        match expression {
            Expr::Lit(ExprLit { lit: Lit::Int(lit), .. }) => {
                Value::Number(lit.base10_parse().unwrap())
            }
            Expr::Lit(ExprLit { lit: Lit::Bool(lit), .. }) => Value::Flag(lit.value),
            Expr::Paren(inner) => self.evaluate(from, &inner.expr),
            Expr::Path(path) => {
                let name = path.path.segments.last().unwrap().ident.to_string();
                self.value(from, &name)
            }
            Expr::Binary(both) => {
                let (left, right) = (number(&both.left), number(&both.right));
                Value::Number(match both.op {
                    BinOp::Mul(_) => left * right,
                    BinOp::Add(_) => left + right,
                    BinOp::Sub(_) => left - right,
                    BinOp::Div(_) => left / right,
                    BinOp::Shl(_) => left << right,
                    _ => panic!("{}: an operator that defaults do not use", from.display()),
                })
            }
            Expr::Call(call) => {
                let Expr::Path(function) = &*call.func else { panic!("{}", from.display()) };
                let unit = function.path.segments.last().unwrap().ident.to_string();
                let count = number(&call.args[0]);
                Value::Milliseconds(match unit.as_str() {
                    "from_millis" => count,
                    "from_secs" => count * 1_000,
                    "from_mins" => count * 60_000,
                    "from_hours" => count * 3_600_000,
                    _ => panic!("{}: `{unit}` is no duration", from.display()),
                })
            }
            _ => panic!("{}: an expression that defaults do not use", from.display()),
        }
    }
}

/// The value that an implementation of `Default` gives a field.
fn given<'a>(item: &'a ItemImpl, field: &str) -> Option<&'a Expr> {
    let ImplItem::Fn(function) = item.items.first()? else { return None };
    let Some(Stmt::Expr(Expr::Struct(made), _)) = function.block.stmts.last() else {
        return None;
    };
    let is_it = |member: &syn::Member| matches!(member, syn::Member::Named(name) if name == field);
    made.fields.iter().find(|given| is_it(&given.member)).map(|given| &given.expr)
}

/// The value of a default.
#[derive(Debug)]
pub enum Value {
    Number(u64),
    Milliseconds(u64),
    Flag(bool),
}

/// The same code with each string literal on one line.
fn joined(code: &str) -> String {
    let mut parts = code.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |code, part| code + part.trim_start())
}

/// The documentation of an item, one string for each paragraph.
pub fn docs(attributes: &[Attribute]) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for attribute in attributes {
        let Meta::NameValue(pair) = &attribute.meta else { continue };
        let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &pair.value else { continue };
        if !pair.path.is_ident("doc") {
            continue;
        }
        let text = text.value();
        let (text, last) = (text.trim(), paragraphs.last_mut().unwrap());
        if text.is_empty() {
            paragraphs.push(String::new());
        } else if last.is_empty() {
            text.clone_into(last);
        } else {
            last.push(' ');
            last.push_str(text);
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs
}

/// The text inside the parentheses of `#[name(...)]`, for each such attribute.
pub fn attributes(attributes: &[Attribute], name: &str) -> Vec<String> {
    let lists = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident(name) => Some(list.tokens.to_string()),
        _ => None,
    });
    lists.collect()
}

/// The named fields of a struct.
pub fn fields(item: &ItemStruct) -> impl Iterator<Item = &syn::Field> {
    match &item.fields {
        Fields::Named(fields) => fields.named.iter(),
        _ => panic!("`{}` has no named fields", item.ident),
    }
}
