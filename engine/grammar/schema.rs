//! JSON Schema as it can be enforced: refuses what would be ignored, and closes objects that name their properties.
//!
//! llguidance enforces most keywords and names those that it does not know. What it would get wrong, or take for ever over, is refused
//! here. A schema that comes out may allow less than the one that went in, never more.

use serde_json::{Map, Value};

use super::source::{GrammarError, invalid};

/// Schemas inside schemas.
const MAX_DEPTH: usize = 64;
/// Values of a schema document.
const MAX_VALUES: usize = 100_000;
/// References of a schema: they are followed one inside the other.
const MAX_REFS: usize = 1000;
/// Integers up to here are exact as f64, which is how bounds are read.
const MAX_EXACT: u64 = 1 << 53;
/// Bounds from here on bound nothing: generated integers have fewer digits (`JsonGuard`).
const FAR_BOUND: f64 = 1e18;

/// `multipleOf` takes as many states as it is large.
const MAX_MULTIPLE: f64 = 10_000.0;
/// Decimal places of `multipleOf`.
const MAX_PLACES: i32 = 4;

/// Keywords that would have to be checked on a whole value.
const UNSUPPORTED: [&str; 17] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "uniqueItems",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "contentSchema",
];
/// Keywords that hold one schema.
const ONE: [&str; 3] = ["items", "additionalProperties", "additionalItems"];
/// Keywords that hold schemas by name.
const NAMED: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
/// Keywords that hold a list of schemas.
const LISTS: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keywords that say nothing about a value.
const SILENT: [&str; 9] = ["title", "description", "default", "examples", "$schema", "$id", "$defs", "definitions", "discriminator"];
/// Keywords beside which an object says only a part of what it may hold.
const COMBINING: [&str; 4] = ["allOf", "anyOf", "oneOf", "$ref"];

/// The schema to compile.
///
/// # Errors
/// `Invalid` naming the keyword that cannot be enforced and where it stands.
pub(super) fn enforceable(schema: &Value) -> Result<Value, GrammarError> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err(invalid("a JSON schema must be an object or a boolean"));
    }
    let mut census = Census { root: schema, num_values: 0, num_refs: 0, num_multiples: 0, joins_parts: false, refers_to_root: false };
    census.count(schema, 2 * MAX_DEPTH)?;
    let mut schema = schema.clone();
    if let Value::Object(map) = &mut schema {
        map.remove("x-guidance");
    }
    // A definition that is a part of another object must stay open.
    let definitions = if census.joins_parts { Position::Part } else { Position::Whole };
    let root = schema.clone();
    let mut walk = Walk { root: &root, path: String::from("#"), definitions };
    let position = if census.refers_to_root { definitions } else { Position::Whole };
    walk.visit(&mut schema, position, MAX_DEPTH)?;
    Ok(schema)
}

/// What a document has in all.
struct Census<'a> {
    root: &'a Value,
    num_values: usize,
    num_refs: usize,
    num_multiples: usize,
    /// An object may be put together of several schemas.
    joins_parts: bool,
    /// The schema is a part of itself.
    refers_to_root: bool,
}

impl Census<'_> {
    fn count(&mut self, value: &Value, depth: usize) -> Result<(), GrammarError> {
        self.num_values += 1;
        // Schemas and the objects and lists that hold them: two levels of values a schema.
        let Some(depth) = depth.checked_sub(1) else {
            return Err(invalid(format!("the JSON schema nests deeper than {MAX_DEPTH}")));
        };
        if self.num_values > MAX_VALUES {
            return Err(invalid(format!("the JSON schema has more than {MAX_VALUES} values")));
        }
        match value {
            Value::Object(map) => {
                self.num_refs += usize::from(map.contains_key("$ref"));
                self.refers_to_root |= map.get("$ref").is_some_and(|to| to == "#");
                self.num_multiples += usize::from(map.contains_key("multipleOf"));
                // Closed, alternatives of `oneOf` could look apart that are not.
                let overlaps = map.get("oneOf").and_then(Value::as_array).is_some_and(|options| !is_discriminated(self.root, options));
                let joins = map.contains_key("allOf") && !wraps_one(map) || overlaps;
                self.joins_parts |= joins || map.contains_key("$ref") && map.contains_key("properties");
                map.values().try_for_each(|value| self.count(value, depth))?;
            }
            Value::Array(items) => items.iter().try_for_each(|value| self.count(value, depth))?,
            _ => {}
        }
        if self.num_refs > MAX_REFS {
            return Err(invalid(format!("the JSON schema has more than {MAX_REFS} references")));
        }
        if self.num_multiples > 1 && self.joins_parts {
            return Err(invalid("`multipleOf` more than once together with `allOf` is not supported"));
        }
        Ok(())
    }
}

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    /// It says all about a value.
    Whole,
    /// Others may say more about the same value.
    Part,
}

/// On its way through a schema.
struct Walk<'a> {
    root: &'a Value,
    /// Where it is, for messages.
    path: String,
    /// Where definitions stand, for all that is known.
    definitions: Position,
}

impl Walk<'_> {
    fn visit(&mut self, schema: &mut Value, position: Position, depth: usize) -> Result<(), GrammarError> {
        let path = self.path.as_str();
        let Value::Object(map) = schema else {
            return if schema.is_boolean() { Ok(()) } else { Err(at(path, "must be an object or a boolean")) };
        };
        let Some(depth) = depth.checked_sub(1) else { return Err(at(path, "nests too deep")) };
        drop_empty_statements(map);
        if let Some(keyword) = UNSUPPORTED.iter().find(|keyword| map.contains_key(**keyword)) {
            return Err(at(path, &format!("`{keyword}` cannot be enforced by this server")));
        }
        check_numbers(map, path)?;
        check_reference(map, path)?;
        check_one_of(map, path)?;
        let combines = COMBINING.iter().any(|keyword| map.contains_key(*keyword));
        let says_more = map.keys().any(|keyword| keyword != "anyOf" && !SILENT.contains(&keyword.as_str()));
        let map_says_more = map.keys().any(|keyword| keyword != "oneOf" && !SILENT.contains(&keyword.as_str()));
        let wraps_one = wraps_one(map);
        let one_of_apart = map.get("oneOf").and_then(Value::as_array).is_some_and(|options| is_discriminated(self.root, options));
        for (keyword, value) in map.iter_mut() {
            let inner = match keyword.as_str() {
                // Alternatives of a value about which nothing else is said.
                "anyOf" if !says_more => position,
                "allOf" if wraps_one => position,
                "oneOf" if one_of_apart && !map_says_more => position,
                "allOf" | "anyOf" | "oneOf" => Position::Part,
                "$defs" | "definitions" => self.definitions,
                _ => Position::Whole,
            };
            self.visit_keyword(keyword, value, inner, depth)?;
        }
        match position {
            Position::Whole if !combines => close(map),
            Position::Whole => close_around_parts(map),
            Position::Part => {}
        }
        Ok(())
    }

    fn visit_keyword(&mut self, keyword: &str, value: &mut Value, position: Position, depth: usize) -> Result<(), GrammarError> {
        match value {
            Value::Array(items) if LISTS.contains(&keyword) => {
                let mut items = items.iter_mut().enumerate();
                items.try_for_each(|(i, item)| self.within(&format!("{keyword}/{i}"), item, position, depth))
            }
            Value::Object(named) if NAMED.contains(&keyword) => {
                named.iter_mut().try_for_each(|(name, inner)| self.within(&format!("{keyword}/{name}"), inner, position, depth))
            }
            _ if ONE.contains(&keyword) => self.within(keyword, value, position, depth),
            _ if NAMED.contains(&keyword) => Err(at(&self.path, &format!("`{keyword}` must be an object"))),
            _ if LISTS.contains(&keyword) => Err(at(&self.path, &format!("`{keyword}` must be an array"))),
            _ => Ok(()),
        }
    }

    fn within(&mut self, name: &str, schema: &mut Value, position: Position, depth: usize) -> Result<(), GrammarError> {
        let len = self.path.len();
        self.path.push('/');
        self.path.push_str(name);
        let visited = self.visit(schema, position, depth);
        self.path.truncate(len);
        visited
    }
}

/// Whether a required property tells the alternatives apart, having another constant text in each: no value fits two of them, open or closed.
fn is_discriminated(root: &Value, options: &[Value]) -> bool {
    let resolved = |option: &'_ Value| -> Option<Value> {
        let reference = option.get("$ref").and_then(Value::as_str);
        reference.map_or(Some(option.clone()), |to| root.pointer(to.strip_prefix('#')?).cloned())
    };
    let Some(options) = options.iter().map(resolved).collect::<Option<Vec<Value>>>() else { return false };
    let required = |option: &Value, name: &str| option["required"].as_array().is_some_and(|names| names.iter().any(|known| known == name));
    let constant = |option: &Value, name: &str| {
        let property = &option["properties"][name];
        let only = property["enum"].as_array().filter(|values| values.len() == 1).and_then(|values| values[0].as_str());
        property["const"].as_str().or(only).filter(|_| required(option, name)).map(str::to_string)
    };
    let Some(first) = options.first().and_then(|option| option["properties"].as_object()) else { return false };
    first.keys().any(|name| {
        let mut seen = std::collections::HashSet::new();
        options.iter().all(|option| constant(option, name).is_some_and(|text| seen.insert(text)))
    })
}

/// Whether `allOf` holds one schema and nothing stands beside it: generators of schemas hang descriptions on references so.
fn wraps_one(map: &Map<String, Value>) -> bool {
    let one = map.get("allOf").and_then(Value::as_array).is_some_and(|parts| parts.len() == 1);
    one && map.keys().all(|keyword| keyword == "allOf" || SILENT.contains(&keyword.as_str()))
}

/// Keywords with values that say nothing.
fn drop_empty_statements(map: &mut Map<String, Value>) {
    let says_nothing = |keyword: &str, value: &Value| match keyword {
        "uniqueItems" => value == &Value::Bool(false),
        // Names are strings.
        "propertyNames" => value == &Value::Bool(true) || value.as_object().is_some_and(is_any_string),
        _ => false,
    };
    map.retain(|keyword, value| !says_nothing(keyword, value));
}

fn is_any_string(names: &Map<String, Value>) -> bool {
    names.iter().all(|(keyword, value)| keyword == "type" && value == "string")
}

fn check_numbers(map: &mut Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    if let Some(multiple) = map.get("multipleOf") {
        let value = multiple.as_f64().filter(|value| *value > 0.0);
        let places =
            |value: f64| (0..=MAX_PLACES).find(|&places| (value * 10f64.powi(places)).fract() == 0.0).map(|n| value * 10f64.powi(n));
        if !value.and_then(places).is_some_and(|digits| digits <= MAX_MULTIPLE) {
            let message = format!(
                "`multipleOf` must be above 0, with at most {MAX_PLACES} decimal places and at most {MAX_MULTIPLE} without the point"
            );
            return Err(at(path, &message));
        }
    }
    if map.get("type").is_some_and(|kind| kind == "integer") {
        for (keyword, sign) in [("minimum", -1.0), ("exclusiveMinimum", -1.0), ("maximum", 1.0), ("exclusiveMaximum", 1.0)] {
            if map.get(keyword).and_then(Value::as_f64).is_some_and(|bound| bound * sign >= FAR_BOUND) {
                map.remove(keyword);
            }
        }
    }
    let values = map.get("enum").and_then(Value::as_array).into_iter().flatten().chain(map.get("const"));
    if let Some(value) = values.into_iter().find(|value| has_inexact(value)) {
        return Err(at(path, &format!("the integer {value} is beyond 2^53 and cannot be enforced exactly")));
    }
    Ok(())
}

fn has_inexact(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_u64().or(number.as_i64().map(i64::unsigned_abs)).is_some_and(|n| n > MAX_EXACT),
        Value::Array(items) => items.iter().any(has_inexact),
        Value::Object(map) => map.values().any(has_inexact),
        _ => false,
    }
}

fn check_reference(map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    match map.get("$ref") {
        None => Ok(()),
        Some(Value::String(to)) if to == "#" || to.starts_with("#/") && !to.contains(['~', '%']) => Ok(()),
        Some(to) => Err(at(path, &format!("`$ref` must point into the schema itself (\"#/...\", without escapes), got {to}"))),
    }
}

/// "Exactly one of" is enforced where no value can fit two; an empty schema fits every value.
fn check_one_of(map: &Map<String, Value>, path: &str) -> Result<(), GrammarError> {
    let Some(Value::Array(options)) = map.get("oneOf") else { return Ok(()) };
    let fits_all = |option: &Value| option == &Value::Bool(true) || option.as_object().is_some_and(Map::is_empty);
    if options.len() > 1 && options.iter().any(fits_all) {
        return Err(at(path, "`oneOf` with an empty schema cannot be enforced by this server"));
    }
    Ok(())
}

/// An object that names its properties has no others: models invent some, and an open object has no end.
fn close(map: &mut Map<String, Value>) {
    let Some(properties) = map.get("properties").and_then(Value::as_object) else { return };
    let is_named = |name: &Value| name.as_str().is_some_and(|name| properties.contains_key(name));
    let all_named = map.get("required").and_then(Value::as_array).is_none_or(|names| names.iter().all(is_named));
    let counts = map.get("minProperties").and_then(Value::as_u64).is_some_and(|min| min as usize > properties.len());
    if all_named && !counts && !map.contains_key("additionalProperties") && !map.contains_key("patternProperties") {
        map.insert("additionalProperties".into(), Value::Bool(false));
    }
}

/// The same where `allOf` puts an object together of parts that stand there: it has what they name.
fn close_around_parts(map: &mut Map<String, Value>) {
    let Some(parts) = map.get("allOf").and_then(Value::as_array) else { return };
    let stands_alone =
        |map: &Map<String, Value>| !["additionalProperties", "patternProperties", "minProperties"].iter().any(|k| map.contains_key(*k));
    let plain = |part: &Value| part.as_object().is_some_and(|part| stands_alone(part) && !COMBINING.iter().any(|k| part.contains_key(*k)));
    let others = COMBINING.iter().any(|keyword| *keyword != "allOf" && map.contains_key(*keyword));
    if others || !stands_alone(map) || !parts.iter().all(plain) || !parts.iter().any(|part| part.get("properties").is_some()) {
        return;
    }
    let named = parts.iter().filter_map(Value::as_object).chain([&*map]).filter_map(|part| part.get("properties")?.as_object());
    let names: Vec<String> = named.flat_map(|properties| properties.keys().cloned()).collect();
    let required = parts.iter().filter_map(Value::as_object).chain([&*map]).filter_map(|part| part.get("required")?.as_array());
    if !required.flatten().all(|name| name.as_str().is_some_and(|name| names.iter().any(|known| known == name))) {
        return;
    }
    let own = map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(own) = own {
        for name in names {
            own.entry(name).or_insert(Value::Bool(true));
        }
    }
    map.insert("additionalProperties".into(), Value::Bool(false));
}

fn at(path: &str, message: &str) -> GrammarError {
    invalid(format!("JSON schema at {path}: {message}"))
}
