//! `#[function]`: checks the fn and writes its description and its export beside it.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{
    Error, Expr, FnArg, GenericArgument, Ident, ItemFn, LitStr, Pat, PathArguments, Result, ReturnType, Stmt,
    Type, parse_quote,
};

use crate::arguments::{
    FunctionArguments, OutputArguments, ParameterArguments, TensorArguments, distinct, take,
};

enum Argument {
    Tensor { name: LitStr, ty: Type, tensor: TensorArguments },
    Parameter { name: LitStr, ty: Type, default: Option<Expr> },
}

/// What the fn returns: `outputs`, within a `Result` or not.
struct Returned {
    outputs: Type,
    fallible: bool,
    span: Span,
}

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let wrong_place = |error: Error| Error::new(error.span(), "`#[function]` stands on a fn");
    let mut item: ItemFn = syn::parse2(item).map_err(wrong_place)?;
    let options: FunctionArguments = syn::parse2(arguments)?;
    check_signature(&item)?;
    let arguments = item.sig.inputs.iter_mut().map(argument).collect::<Result<Vec<_>>>()?;
    check_names(&arguments)?;
    let returned = returned(&item)?;
    check_outputs(&returned.outputs, options.outputs.as_deref())?;

    let checks = checks(&arguments, &returned.outputs, &options)?;
    let describe = describe(&arguments, &returned.outputs, &options);
    let call = call(&item.sig.ident, &arguments, &returned, options.outputs.as_deref());
    let named_outputs = options.outputs.iter().flatten().map(|output| &output.name);
    let marker = format_ident!("__tenon_{}", item.sig.ident.unraw());
    // Behind the items at the beginning, which are better not separated from it.
    let first = item.block.stmts.iter().take_while(|statement| matches!(statement, Stmt::Item(_))).count();
    item.block.stmts.insert(first, parse_quote!(::tenon_sdk::export::running::<#marker>();));
    Ok(quote! {
        #[cfg_attr(not(target_family = "wasm"), allow(dead_code, reason = "exported in wasm"))]
        #item

        #[doc(hidden)]
        #[allow(dead_code, reason = "a second function in the same place is an error that says so")]
        const A_COMPONENT_HAS_ONE_MODEL_FUNCTION: () = ();

        #[doc(hidden)]
        #[allow(dead_code, non_camel_case_types, reason = "exported in wasm, under the fn's name out of its way")]
        pub(crate) struct #marker;

        const _: () = {
            #checks
            impl ::tenon_sdk::export::Function for #marker {
                const NAMED_OUTPUTS: &'static [&'static str] = &[#(#named_outputs),*];
                fn describe() -> ::tenon_sdk::Metadata { #describe }
                fn call(
                    #[allow(unused_mut, reason = "a function without inputs takes none")]
                    mut __request: ::tenon_sdk::export::Request,
                ) -> ::tenon_sdk::Result<::tenon_sdk::export::Reply> { #call }
            }
        };

        #[cfg(target_family = "wasm")]
        ::tenon_sdk::export::export_component!(#marker with_types_in ::tenon_sdk::bindings);
    })
}

fn check_signature(item: &ItemFn) -> Result<()> {
    let signature = &item.sig;
    let refused = |span, text: &str| Err(Error::new(span, text));
    if let Some(token) = &signature.asyncness {
        return refused(
            token.span(),
            "a model function is not async: it answers one request in one instance",
        );
    }
    if let Some(token) = &signature.constness {
        return refused(token.span(), "a model function is not const: it is called when a request comes");
    }
    if let Some(token) = &signature.unsafety {
        return refused(token.span(), "a model function is not unsafe");
    }
    if !signature.generics.params.is_empty() {
        return refused(
            signature.generics.span(),
            "a model function is not generic: its types are its contract",
        );
    }
    match signature.inputs.first() {
        Some(FnArg::Receiver(receiver)) => refused(
            receiver.span(),
            "a model function has no `self`: each request has an instance of its own",
        ),
        _ => Ok(()),
    }
}

fn argument(argument: &mut FnArg) -> Result<Argument> {
    let FnArg::Typed(argument) = argument else {
        return Err(Error::new(argument.span(), "a model function has no `self`"));
    };
    let Pat::Ident(ident) = &*argument.pat else {
        return Err(Error::new(argument.pat.span(), "an input has a plain name: take it apart in the fn"));
    };
    if let Type::Reference(reference) = &*argument.ty {
        let text =
            "an input is owned: `String`, `Bytes`, `Tensor<T>` rather than `&str`, `&[u8]`, `&Tensor<T>`";
        return Err(Error::new(reference.span(), text));
    }
    let own_name = LitStr::new(&ident.ident.unraw().to_string(), ident.ident.span());
    let ty = (*argument.ty).clone();
    let parameter: Option<ParameterArguments> = take(&mut argument.attrs, "parameter")?;
    let tensor: Option<TensorArguments> = take(&mut argument.attrs, "tensor")?;
    match (parameter, tensor) {
        (Some(_), Some(_)) => {
            Err(Error::new(ident.span(), "an argument is a tensor or a parameter, not both"))
        }
        (Some(parameter), None) => {
            let name = parameter.name.unwrap_or(own_name);
            Ok(Argument::Parameter { name, ty, default: parameter.default })
        }
        (None, tensor) => {
            let tensor = tensor.unwrap_or_default();
            Ok(Argument::Tensor { name: tensor.name.clone().unwrap_or(own_name), ty, tensor })
        }
    }
}

fn check_names(arguments: &[Argument]) -> Result<()> {
    let tensors = arguments.iter().filter_map(|argument| match argument {
        Argument::Tensor { name, .. } => Some(name),
        Argument::Parameter { .. } => None,
    });
    let parameters = arguments.iter().filter_map(|argument| match argument {
        Argument::Parameter { name, .. } => Some(name),
        Argument::Tensor { .. } => None,
    });
    distinct(tensors, "inputs")?;
    distinct(parameters, "parameters")
}

fn returned(item: &ItemFn) -> Result<Returned> {
    let ReturnType::Type(_, ty) = &item.sig.output else {
        let text = "a model function returns its outputs, such as `Result<Tensor<f32>>`";
        return Err(Error::new(item.sig.paren_token.span.close(), text));
    };
    let infallible = Returned { outputs: (**ty).clone(), fallible: false, span: ty.span() };
    let Type::Path(path) = &**ty else {
        return Ok(infallible);
    };
    let last = path.path.segments.last().expect("a path has a segment");
    let PathArguments::AngleBracketed(generics) = &last.arguments else {
        return Ok(infallible);
    };
    match generics.args.first() {
        Some(GenericArgument::Type(outputs)) if last.ident == "Result" => {
            Ok(Returned { outputs: outputs.clone(), fallible: true, ..infallible })
        }
        _ => Ok(infallible),
    }
}

fn check_outputs(ty: &Type, named: Option<&[OutputArguments]>) -> Result<()> {
    let tuple = match ty {
        Type::Tuple(tuple) if tuple.elems.is_empty() => {
            return Err(Error::new(ty.span(), "a model function has at least one output"));
        }
        Type::Tuple(tuple) => Some(tuple.elems.len()),
        _ => None,
    };
    match (tuple, named) {
        (None, None) => Ok(()),
        (Some(_), None) => {
            let text = "the elements of a tuple need names: #[function(outputs(first, second))], or return a \
                        struct with #[derive(Outputs)]";
            Err(Error::new(ty.span(), text))
        }
        (elements, Some(named)) if elements.unwrap_or(1) == named.len() => {
            distinct(named.iter().map(|output| &output.name), "outputs")
        }
        (elements, Some(named)) => {
            let (has, names) = (elements.unwrap_or(1), named.len());
            let span = named.last().map_or(ty.span(), |output| output.name.span());
            let hint = if has == 1 { ": several are returned as a tuple" } else { "" };
            Err(Error::new(span, format!("{names} outputs are named and {has} returned{hint}")))
        }
    }
}

/// The types of the named outputs: the tuple's, or the one.
fn output_types(ty: &Type) -> Vec<&Type> {
    match ty {
        Type::Tuple(tuple) => tuple.elems.iter().collect(),
        _ => vec![ty],
    }
}

/// Datatypes as the compiler knows them, so that what does not fit is an error there.
fn checks(arguments: &[Argument], outputs: &Type, options: &FunctionArguments) -> Result<TokenStream> {
    let tensors: Vec<(&Type, &TensorArguments)> = arguments.iter().filter_map(tensor).collect();
    let inputs = tensors.iter().map(|(ty, tensor)| {
        let datatype = tensor.datatype();
        let shape = tensor.check_shape(quote!(<#ty as ::tenon_sdk::Input>::SHAPE));
        quote_spanned!(ty.span()=> const _: ::tenon_sdk::Datatype = ::tenon_sdk::export::check_input::<#ty>(#datatype);
            #shape)
    });
    let named = options.outputs.iter().flatten().zip(output_types(outputs)).map(|(output, ty)| {
        let datatype = output.tensor.datatype();
        let shape = output.tensor.check_shape(quote!(<#ty as ::tenon_sdk::Output>::SHAPE));
        quote_spanned!(ty.span()=> const _: ::tenon_sdk::Datatype = ::tenon_sdk::export::check_output::<#ty>(#datatype);
            #shape)
    });
    let answers =
        options.answers.as_ref().map(|answers| check_answers(answers, outputs, options)).transpose()?;
    let accepts = match (&options.accepts, tensors.as_slice()) {
        (None, _) => TokenStream::new(),
        (Some(_), [(ty, tensor)]) => {
            let datatype = tensor.datatype();
            quote_spanned!(ty.span()=> const _: () =
                ::tenon_sdk::export::check_raw(::tenon_sdk::export::check_input::<#ty>(#datatype));)
        }
        (Some(accepts), _) => {
            let span = accepts.first().map_or(outputs.span(), LitStr::span);
            return Err(Error::new(span, "a raw body becomes the one BYTES input: give the fn one input"));
        }
    };
    Ok(quote!(#(#inputs)* #(#named)* #accepts #answers))
}

fn check_answers(answers: &LitStr, outputs: &Type, options: &FunctionArguments) -> Result<TokenStream> {
    match options.outputs.as_deref() {
        None => Ok(quote_spanned!(outputs.span()=> const _: () =
            ::tenon_sdk::export::check_answers::<#outputs>();)),
        Some([output]) => {
            let (ty, datatype) = (output_types(outputs)[0], output.tensor.datatype());
            Ok(quote_spanned!(ty.span()=> const _: () =
                ::tenon_sdk::export::check_raw(::tenon_sdk::export::check_output::<#ty>(#datatype));))
        }
        Some(_) => Err(Error::new(answers.span(), "a raw answer is the one BYTES output: return one")),
    }
}

fn tensor(argument: &Argument) -> Option<(&Type, &TensorArguments)> {
    match argument {
        Argument::Tensor { ty, tensor, .. } => Some((ty, tensor)),
        Argument::Parameter { .. } => None,
    }
}

fn describe(arguments: &[Argument], outputs: &Type, options: &FunctionArguments) -> TokenStream {
    let inputs = arguments.iter().filter_map(|argument| {
        let Argument::Tensor { name, ty, tensor } = argument else { return None };
        let datatype = tensor.datatype();
        let shape = tensor.shape(quote!(<#ty as ::tenon_sdk::Input>::SHAPE));
        Some(quote!(__description.input::<#ty>(#name, #datatype, #shape);))
    });
    let outputs = match &options.outputs {
        None => quote!(__description.outputs::<#outputs>();),
        Some(named) => described_outputs(named, &output_types(outputs)),
    };
    let accepts = match (&options.accepts, tensor_types(arguments).as_slice()) {
        (Some(accepts), _) => quote!(__description.accepts(&[#(#accepts),*]);),
        (None, [ty]) => quote!(__description.accepts(<#ty as ::tenon_sdk::Input>::ACCEPTS);),
        (None, _) => TokenStream::new(),
    };
    let answers = options
        .answers
        .as_ref()
        .map(|answers| quote!(__description.answers(::core::option::Option::Some(#answers));));
    quote! {
        let mut __description = ::tenon_sdk::export::Description::default();
        #(#inputs)*
        #outputs
        #accepts
        #answers
        __description.finish()
    }
}

fn tensor_types(arguments: &[Argument]) -> Vec<&Type> {
    arguments.iter().filter_map(|argument| tensor(argument).map(|(ty, _)| ty)).collect()
}

fn described_outputs(named: &[OutputArguments], types: &[&Type]) -> TokenStream {
    let outputs = named.iter().zip(types).map(|(output, ty)| {
        let (name, datatype) = (&output.name, output.tensor.datatype());
        let shape = output.tensor.shape(quote!(<#ty as ::tenon_sdk::Output>::SHAPE));
        quote!(__description.output::<#ty>(#name, #datatype, #shape);)
    });
    let answers = match types {
        [ty] => quote!(__description.answers(<#ty as ::tenon_sdk::Output>::ANSWERS);),
        _ => TokenStream::new(),
    };
    quote!(#(#outputs)* #answers)
}

fn call(
    function: &Ident,
    arguments: &[Argument],
    returned: &Returned,
    named: Option<&[OutputArguments]>,
) -> TokenStream {
    let values: Vec<Ident> = (0..arguments.len()).map(|index| format_ident!("__argument_{index}")).collect();
    let taken = arguments.iter().zip(&values).map(|(argument, value)| {
        let taken = take_argument(argument);
        quote!(let #value = #taken;)
    });
    // What does not fit is shown at what the fn returns.
    let span = Span::call_site().located_at(returned.span);
    let answered = quote_spanned!(span=> __request.answered_by(|| #function(#(#values),*)));
    let result = match returned.fallible {
        true => quote_spanned!(span=> ::tenon_sdk::export::answered(#answered)?),
        false => answered,
    };
    let written = match named {
        None => quote!(::tenon_sdk::Outputs::write(__outputs, &mut __reply)?;),
        Some([one]) if !matches!(returned.outputs, Type::Tuple(_)) => {
            let name = &one.name;
            quote!(__reply.add(#name, __outputs)?;)
        }
        Some(named) => {
            let names = named.iter().map(|output| &output.name);
            let fields = (0..named.len()).map(syn::Index::from);
            quote!(#(__reply.add(#names, __outputs.#fields)?;)*)
        }
    };
    quote! {
        #(#taken)*
        let __outputs = #result;
        let mut __reply = __request.reply();
        #written
        ::core::result::Result::Ok(__reply)
    }
}

fn take_argument(argument: &Argument) -> TokenStream {
    match argument {
        Argument::Tensor { name, ty, .. } => quote!(__request.input::<#ty>(#name)?),
        Argument::Parameter { name, ty, default: None } => quote!(__request.parameter::<#ty>(#name)?),
        Argument::Parameter { name, ty, default: Some(default) } => quote! {
            match __request.parameter::<::core::option::Option<#ty>>(#name)? {
                ::core::option::Option::Some(value) => value,
                ::core::option::Option::None => #default,
            }
        },
    }
}
