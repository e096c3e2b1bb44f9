//! The WIT contract as Rust, generated.

// The imports alone reach a component that only calls models: the exports come with `export!`, which the
// `function` attribute writes into the author's crate.
wit_bindgen::generate!({
    path: "../wit",
    world: "model-function",
    pub_export_macro: true,
    default_bindings_module: "tenon_sdk::bindings",
});
