//! Values as D-Bus writes them, little-endian: as many kinds as we meet ("Type System", "Marshaling").

use serde::{Deserialize, Serialize};

/// A value, or several in one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Value {
    Byte(u8),
    Bool(bool),
    Int(i32),
    UInt(u32),
    Text(String),
    Path(String),
    Signature(String),
    /// With the signature of its elements.
    Array(String, Vec<Value>),
    Struct(Vec<Value>),
    /// A key and a value, in an array.
    Entry(Box<Value>, Box<Value>),
    Variant(Box<Value>),
}

/// Deeper values are refused.
const DEPTH_MAX: u32 = 16;

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl Value {
    /// A list of texts.
    pub(crate) fn texts<T: AsRef<str>>(texts: &[T]) -> Value {
        Value::Array("s".to_owned(), texts.iter().map(|it| Value::from(it.as_ref())).collect())
    }

    /// A dictionary of texts to values of any kind.
    pub(crate) fn dictionary<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
        let entry =
            |(key, value)| Value::Entry(Value::from(key).into(), Value::Variant(Box::new(value)).into());
        Value::Array("{sv}".to_owned(), entries.into_iter().map(entry).collect())
    }

    /// What a dictionary of texts to values has for `key`.
    pub(crate) fn entry(&self, key: &str) -> Option<&Value> {
        let Value::Array(_, entries) = self else { return None };
        entries.iter().find_map(|entry| match entry {
            Value::Entry(name, value) if **name == Value::from(key) => match &**value {
                Value::Variant(inner) => Some(&**inner),
                other => Some(other),
            },
            _ => None,
        })
    }

    pub(crate) fn into_text(self) -> Option<String> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    pub(crate) fn signature(&self) -> String {
        match self {
            Value::Byte(_) => "y".to_owned(),
            Value::Bool(_) => "b".to_owned(),
            Value::Int(_) => "i".to_owned(),
            Value::UInt(_) => "u".to_owned(),
            Value::Text(_) => "s".to_owned(),
            Value::Path(_) => "o".to_owned(),
            Value::Signature(_) => "g".to_owned(),
            Value::Array(element, _) => format!("a{element}"),
            Value::Struct(parts) => format!("({})", parts.iter().map(Value::signature).collect::<String>()),
            Value::Entry(key, value) => format!("{{{}{}}}", key.signature(), value.signature()),
            Value::Variant(_) => "v".to_owned(),
        }
    }
}

fn alignment(signature: &str) -> usize {
    match signature.as_bytes().first() {
        Some(b'y' | b'g' | b'v') => 1,
        Some(b'(' | b'{') => 8,
        _ => 4,
    }
}

#[derive(Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    pub(super) fn write(&mut self, value: &Value) {
        self.align(alignment(&value.signature()));
        match value {
            Value::Byte(byte) => self.0.push(*byte),
            Value::Bool(it) => self.0.extend(u32::from(*it).to_le_bytes()),
            Value::Int(number) => self.0.extend(number.to_le_bytes()),
            Value::UInt(number) => self.0.extend(number.to_le_bytes()),
            Value::Text(text) | Value::Path(text) => {
                self.0.extend((text.len() as u32).to_le_bytes());
                self.0.extend(text.as_bytes());
                self.0.push(0);
            }
            Value::Signature(text) => self.signature(text),
            Value::Array(element, values) => {
                let length_at = self.0.len();
                self.0.extend([0; 4]);
                self.align(alignment(element));
                let start = self.0.len();
                values.iter().for_each(|it| self.write(it));
                let length = (self.0.len() - start) as u32;
                self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
            }
            Value::Struct(parts) => parts.iter().for_each(|it| self.write(it)),
            Value::Entry(key, value) => [key, value].into_iter().for_each(|it| self.write(it)),
            Value::Variant(inner) => {
                self.signature(&inner.signature());
                self.write(inner);
            }
        }
    }

    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }
}

/// Reads values; `None` for whatever is not one.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where `bytes` begin, for the alignment.
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], offset: usize) -> Reader<'a> {
        Reader { bytes, at: 0, offset }
    }

    pub(super) fn values(&mut self, signature: &str) -> Option<Vec<Value>> {
        self.sequence(signature, 0)
    }

    pub(super) fn value(&mut self, signature: &str) -> Option<Value> {
        self.one(signature, 0)
    }

    fn sequence(&mut self, mut signature: &str, depth: u32) -> Option<Vec<Value>> {
        let mut values = Vec::new();
        while !signature.is_empty() {
            let (first, rest) = split_first(signature)?;
            values.push(self.one(first, depth)?);
            signature = rest;
        }
        Some(values)
    }

    fn one(&mut self, signature: &str, depth: u32) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.align(alignment(signature));
        Some(match signature.as_bytes().first()? {
            b'y' => Value::Byte(self.take(1)?[0]),
            b'b' => Value::Bool(self.word()? != 0),
            b'i' => Value::Int(self.word()?.cast_signed()),
            b'u' => Value::UInt(self.word()?),
            b's' => Value::Text(self.text()?),
            b'o' => Value::Path(self.text()?),
            b'g' => Value::Signature(self.signature()?),
            b'v' => {
                let signature = self.signature()?;
                let (first, rest) = split_first(&signature)?;
                if !rest.is_empty() {
                    return None;
                }
                Value::Variant(Box::new(self.one(first, depth + 1)?))
            }
            b'(' => Value::Struct(self.sequence(inner(signature)?, depth + 1)?),
            b'{' => {
                let mut parts = self.sequence(inner(signature)?, depth + 1)?.into_iter();
                let (Some(key), Some(value), None) = (parts.next(), parts.next(), parts.next()) else {
                    return None;
                };
                Value::Entry(Box::new(key), Box::new(value))
            }
            b'a' => {
                let (element, "") = split_first(&signature[1..])? else { return None };
                let length = self.word()? as usize;
                self.align(alignment(element));
                let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
                let mut values = Vec::new();
                while self.at < end {
                    values.push(self.one(element, depth + 1)?);
                }
                if self.at != end {
                    return None;
                }
                Value::Array(element.to_owned(), values)
            }
            _ => return None,
        })
    }

    fn align(&mut self, to: usize) {
        self.at = (self.at + self.offset).next_multiple_of(to) - self.offset;
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn word(&mut self) -> Option<u32> {
        let bytes = self.take(4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn text(&mut self) -> Option<String> {
        let length = self.word()? as usize;
        self.text_of(length)
    }

    fn signature(&mut self) -> Option<String> {
        let length = self.take(1)?[0];
        self.text_of(length.into())
    }

    fn text_of(&mut self, length: usize) -> Option<String> {
        let text = String::from_utf8(self.take(length)?.to_vec()).ok()?;
        self.take(1)?;
        Some(text)
    }
}

/// Without the brackets; there is always something in them.
fn inner(signature: &str) -> Option<&str> {
    signature.get(1..signature.len().checked_sub(1)?).filter(|inner| !inner.is_empty())
}

/// The first complete type of a signature, and the rest.
fn split_first(signature: &str) -> Option<(&str, &str)> {
    let mut open = 0;
    for (at, letter) in signature.char_indices() {
        match letter {
            '(' | '{' => open += 1,
            ')' | '}' => open -= 1,
            'a' => continue,
            _ => {}
        }
        if open < 0 {
            return None;
        }
        if open == 0 {
            return Some(signature.split_at(at + letter.len_utf8()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_from_any_offset() {
        let servers = Value::Array(
            "(iay)".into(),
            vec![
                Value::Struct(vec![
                    Value::Int(2),
                    Value::Array("y".into(), [10, 0, 0, 1].map(Value::Byte).into()),
                ]),
                Value::Struct(vec![Value::Int(-1), Value::Array("y".into(), Vec::new())]),
            ],
        );
        let settings = Value::dictionary([
            ("searches", Value::texts(&["lan"])),
            (
                "domains",
                Value::dictionary([("*", Value::dictionary([("servers", Value::texts(&["10.0.0.1"]))]))]),
            ),
        ]);
        let values = vec![Value::Byte(1), servers, Value::Bool(true), settings, Value::Path("/a".into())];
        let mut writer = Writer::default();
        values.iter().for_each(|it| writer.write(it));
        let signature: String = values.iter().map(Value::signature).collect();
        assert_eq!(signature, "ya(iay)ba{sv}o");
        assert_eq!(Reader::new(writer.bytes(), 0).values(&signature), Some(values.clone()));
        for cut in 0..writer.bytes().len() {
            assert_eq!(Reader::new(&writer.bytes()[..cut], 0).values(&signature), None, "cut at {cut}");
        }
        let json = serde_json::to_string(&values).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Value>>(&json).unwrap(), values);
    }

    #[test]
    fn nonsense_is_no_value() {
        for signature in ["", ")", "(", "a", "{", "z", "a{sv", "((((((((((((((((((((i))))))))))))))))))))"] {
            assert_eq!(Reader::new(&[0; 64], 0).value(signature), None, "{signature}");
        }
        let nested = [1, b'v', 0].repeat(40);
        assert_eq!(Reader::new(&nested, 0).value("v"), None);
        let huge = [0xff; 8];
        assert_eq!(Reader::new(&huge, 0).value("s"), None);
        assert_eq!(Reader::new(&huge, 0).value("ay"), None);
    }

    #[test]
    fn an_empty_array_of_empty_things_ends() {
        // An element of no bytes would never reach the end.
        assert_eq!(Reader::new(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0).value("a()"), None);
    }
}
