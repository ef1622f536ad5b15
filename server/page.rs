//! Pages of the lists that both families' clients read.

use crate::error::ApiError;

/// A page of a list, by Anthropic's query parameters.
pub(crate) struct Page<'a> {
    limit: usize,
    after_id: Option<&'a str>,
    before_id: Option<&'a str>,
}

impl<'a> Page<'a> {
    /// Reads the query of a list whose pages have `default_limit` entries.
    pub(crate) fn parse(query: &'a [(String, String)], default_limit: usize) -> Result<Self, ApiError> {
        let value = |name| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let limit = match value("limit") {
            None => default_limit,
            Some(text) => match text.parse::<usize>() {
                Ok(limit) if limit >= 1 => limit,
                _ => return Err(ApiError::field("limit", format!("must be an integer of at least 1, got {text:?}"))),
            },
        };
        Ok(Page { limit, after_id: value("after_id"), before_id: value("before_id") })
    }

    /// The page's entries, and whether more follow in its direction. An unknown id has nothing after or before it.
    pub(crate) fn range(&self, ids: &[&str]) -> (std::ops::Range<usize>, bool) {
        let place = |id: &str| ids.iter().position(|known| *known == id);
        if let Some(before) = self.before_id {
            let end = place(before).unwrap_or(0);
            let start = end.saturating_sub(self.limit);
            return (start..end, start > 0);
        }
        let start = self.after_id.map_or(0, |after| place(after).map_or(ids.len(), |idx| idx + 1));
        let end = start.saturating_add(self.limit).min(ids.len());
        (start..end, end < ids.len())
    }
}
