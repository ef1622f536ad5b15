//! Templates of real models, and what keeps a hostile one in bounds.
