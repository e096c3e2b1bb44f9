//! What stands in the parentheses of `#[function(...)]`, `#[tensor(...)]` and `#[parameter(...)]`.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Error, Expr, Ident, Lit, LitStr, Meta, Result, Token, bracketed, parenthesized};

/// `#[tensor(name = "...", shape = [-1, 4], datatype = "FP32")]`.
#[derive(Default)]
pub(crate) struct TensorArguments {
    pub(crate) name: Option<LitStr>,
    shape: Option<Vec<Expr>>,
    datatype: Option<Ident>,
}

impl TensorArguments {
    /// The datatype as an `Option<Datatype>`.
    pub(crate) fn datatype(&self) -> TokenStream {
        match &self.datatype {
            Some(variant) => quote!(::core::option::Option::Some(::tenon_sdk::Datatype::#variant)),
            None => quote!(::core::option::Option::None),
        }
    }

    /// A check of the shape, where one is given, against that of the type.
    pub(crate) fn check_shape(&self, of_the_type: impl ToTokens) -> TokenStream {
        let Some(sizes) = &self.shape else { return TokenStream::new() };
        let span = sizes.first().map_or(Span::call_site(), Spanned::span);
        quote_spanned!(span=> const _: () = ::tenon_sdk::export::check_shape(#of_the_type, &[#(#sizes),*]);)
    }

    /// The shape as a `&[i64]`, or else what the type says.
    pub(crate) fn shape(&self, of_the_type: impl ToTokens) -> TokenStream {
        match &self.shape {
            Some(sizes) => quote!(&[#(#sizes),*]),
            None => of_the_type.to_token_stream(),
        }
    }
}

impl Parse for TensorArguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut arguments = Self::default();
        each(input, |key, input| {
            match key.to_string().as_str() {
                "name" => arguments.name = Some(value(input)?),
                "shape" => arguments.shape = Some(shape(input)?),
                "datatype" => arguments.datatype = Some(datatype(&value(input)?)?),
                _ => return Err(Error::new(key.span(), "a tensor has `name`, `shape` and `datatype`")),
            }
            Ok(())
        })?;
        Ok(arguments)
    }
}

/// `#[parameter(name = "...", default = ...)]`.
#[derive(Default)]
pub(crate) struct ParameterArguments {
    pub(crate) name: Option<LitStr>,
    pub(crate) default: Option<Expr>,
}

impl Parse for ParameterArguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut arguments = Self::default();
        each(input, |key, input| {
            match key.to_string().as_str() {
                "name" => arguments.name = Some(value(input)?),
                "default" => arguments.default = Some(value(input)?),
                _ => return Err(Error::new(key.span(), "a parameter has `name` and `default`")),
            }
            Ok(())
        })?;
        Ok(arguments)
    }
}

/// One of `outputs(sum, "the-rest"(shape = [4]))`.
pub(crate) struct OutputArguments {
    pub(crate) name: LitStr,
    pub(crate) tensor: TensorArguments,
}

impl Parse for OutputArguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let name = match input.peek(LitStr) {
            true => input.parse()?,
            false => {
                let ident = input.call(Ident::parse_any)?;
                LitStr::new(&ident.unraw().to_string(), ident.span())
            }
        };
        let tensor = match input.peek(syn::token::Paren) {
            true => parenthesised(input, TensorArguments::parse)?,
            false => TensorArguments::default(),
        };
        match &tensor.name {
            Some(second) => Err(Error::new(second.span(), "the name stands before the parentheses")),
            None => Ok(Self { name, tensor }),
        }
    }
}

/// `#[function(outputs(...), accepts(...), answers("..."))]`.
#[derive(Default)]
pub(crate) struct FunctionArguments {
    pub(crate) outputs: Option<Vec<OutputArguments>>,
    pub(crate) accepts: Option<Vec<LitStr>>,
    pub(crate) answers: Option<LitStr>,
}

impl Parse for FunctionArguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let mut arguments = Self::default();
        each(input, |key, input| {
            match key.to_string().as_str() {
                "outputs" => arguments.outputs = Some(list(input)?),
                "accepts" => arguments.accepts = Some(media_types(list(input)?)?),
                "answers" => match media_types(list(input)?)?.as_slice() {
                    [one] => arguments.answers = Some(one.clone()),
                    _ => return Err(Error::new(key.span(), "a function answers one media type")),
                },
                _ => {
                    let known = "a function has `outputs(...)`, `accepts(\"...\")` and `answers(\"...\")`";
                    return Err(Error::new(key.span(), known));
                }
            }
            Ok(())
        })?;
        Ok(arguments)
    }
}

/// Takes the attribute of this name out of `attributes`; an attribute without parentheses has empty arguments.
pub(crate) fn take<T: Parse + Default>(attributes: &mut Vec<Attribute>, name: &str) -> Result<Option<T>> {
    let Some(index) = attributes.iter().position(|attribute| attribute.path().is_ident(name)) else {
        return Ok(None);
    };
    let attribute = attributes.remove(index);
    match &attribute.meta {
        Meta::Path(_) => Ok(Some(T::default())),
        _ => attribute.parse_args().map(Some),
    }
}

/// An error at the second of two equal names.
pub(crate) fn distinct<'a>(names: impl IntoIterator<Item = &'a LitStr>, what: &str) -> Result<()> {
    let mut seen = Vec::new();
    for name in names {
        if seen.contains(&name.value()) {
            return Err(Error::new(name.span(), format!("there are two {what} `{}`", name.value())));
        }
        seen.push(name.value());
    }
    Ok(())
}

/// Key by key, separated by commas, none twice.
fn each(input: ParseStream<'_>, mut read: impl FnMut(&Ident, ParseStream<'_>) -> Result<()>) -> Result<()> {
    let mut seen: Vec<Ident> = Vec::new();
    while !input.is_empty() {
        let key = input.call(Ident::parse_any)?;
        if seen.contains(&key) {
            return Err(Error::new(key.span(), format!("`{key}` stands here twice")));
        }
        read(&key, input)?;
        seen.push(key);
        if !input.is_empty() {
            input.parse::<Token![,]>()?;
        }
    }
    Ok(())
}

fn value<T: Parse>(input: ParseStream<'_>) -> Result<T> {
    input.parse::<Token![=]>()?;
    input.parse()
}

fn parenthesised<T>(input: ParseStream<'_>, read: impl FnOnce(ParseStream<'_>) -> Result<T>) -> Result<T> {
    let content;
    parenthesized!(content in input);
    read(&content)
}

fn list<T: Parse>(input: ParseStream<'_>) -> Result<Vec<T>> {
    let span = input.span();
    let items = parenthesised(input, Punctuated::<T, Token![,]>::parse_terminated)?;
    match items.is_empty() {
        true => Err(Error::new(span, "nothing is listed here")),
        false => Ok(items.into_iter().collect()),
    }
}

fn shape(input: ParseStream<'_>) -> Result<Vec<Expr>> {
    input.parse::<Token![=]>()?;
    if !input.peek(syn::token::Bracket) {
        return Err(input.error("a shape is a list of sizes, such as `[-1, 64]`"));
    }
    let content;
    bracketed!(content in input);
    let sizes = Punctuated::<Expr, Token![,]>::parse_terminated(&content)?;
    let is_number = |size: &Expr| match size {
        Expr::Lit(literal) => matches!(literal.lit, Lit::Int(_)),
        _ => true,
    };
    match sizes.iter().find(|&size| !is_number(size)) {
        Some(size) => {
            Err(Error::new(size.span(), "a size is a whole number, -1 where the caller chooses it"))
        }
        None => Ok(sizes.into_iter().collect()),
    }
}

/// The variant of `Datatype` for a name of the Open Inference Protocol.
fn datatype(name: &LitStr) -> Result<Ident> {
    const NAMES: [&str; 14] = [
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16",
        "FP32", "FP64", "BYTES",
    ];
    let upper = name.value().to_uppercase();
    if !NAMES.contains(&upper.as_str()) {
        return Err(Error::new(name.span(), format!("datatypes are {}", NAMES.join(", "))));
    }
    let variant = format!("{}{}", &upper[..1], upper[1..].to_lowercase());
    Ok(Ident::new(&variant, Span::call_site()))
}

fn media_types(list: Vec<LitStr>) -> Result<Vec<LitStr>> {
    match list.iter().find(|media_type| !media_type.value().contains('/')) {
        Some(other) => Err(Error::new(other.span(), "a media type looks like `image/png` or `text/*`")),
        None => Ok(list),
    }
}
