//! `#[derive(Outputs)]`: each field of a struct is an output.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Field, Fields, Ident, LitStr, Result, Type};

use crate::arguments::{TensorArguments, distinct, take};

struct Output {
    field: Ident,
    name: LitStr,
    ty: Type,
    tensor: TensorArguments,
}

pub(crate) fn expand(item: TokenStream) -> Result<TokenStream> {
    let item: DeriveInput = syn::parse2(item)?;
    let outputs = fields(&item)?.iter().map(output).collect::<Result<Vec<_>>>()?;
    distinct(outputs.iter().map(|output| &output.name), "outputs")?;
    let checks = outputs.iter().map(|Output { ty, tensor, .. }| {
        let datatype = tensor.datatype();
        let shape = tensor.check_shape(quote!(<#ty as ::tenon_sdk::Output>::SHAPE));
        quote_spanned!(ty.span()=> const _: ::tenon_sdk::Datatype = ::tenon_sdk::export::check_output::<#ty>(#datatype);
            #shape)
    });
    let described = outputs.iter().map(|Output { name, ty, tensor, .. }| {
        let datatype = tensor.datatype();
        let shape = tensor.shape(quote!(<#ty as ::tenon_sdk::Output>::SHAPE));
        quote!(description.output::<#ty>(#name, #datatype, #shape);)
    });
    let answers = match outputs.as_slice() {
        [Output { ty, .. }] => quote!(<#ty as ::tenon_sdk::Output>::ANSWERS),
        _ => quote!(::core::option::Option::None),
    };
    let names = outputs.iter().map(|output| &output.name);
    let values = outputs.iter().map(|output| &output.field);
    let ident = &item.ident;
    Ok(quote! {
        const _: () = {
            #(#checks)*
            impl ::tenon_sdk::Outputs for #ident {
                const ANSWERS: ::core::option::Option<&'static str> = #answers;

                fn describe(description: &mut ::tenon_sdk::export::Description) {
                    #(#described)*
                }

                fn write(self, reply: &mut ::tenon_sdk::export::Reply) -> ::tenon_sdk::Result<()> {
                    #(reply.add(#names, self.#values)?;)*
                    ::core::result::Result::Ok(())
                }
            }
        };
    })
}

fn fields(item: &DeriveInput) -> Result<Vec<Field>> {
    if !item.generics.params.is_empty() {
        return Err(Error::new(
            item.generics.span(),
            "outputs are not generic: their types are the contract",
        ));
    }
    match &item.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) if !fields.named.is_empty() => Ok(fields.named.iter().cloned().collect()),
            _ => Err(Error::new(item.ident.span(), "outputs need names: give the struct named fields")),
        },
        _ => Err(Error::new(item.ident.span(), "`Outputs` is derived for a struct, each field an output")),
    }
}

fn output(field: &Field) -> Result<Output> {
    let ident = field.ident.clone().ok_or_else(|| Error::new(field.span(), "an output needs a name"))?;
    let mut attributes = field.attrs.clone();
    let tensor: TensorArguments = take(&mut attributes, "tensor")?.unwrap_or_default();
    let own_name = LitStr::new(&ident.unraw().to_string(), ident.span());
    let name = tensor.name.clone().unwrap_or(own_name);
    Ok(Output { field: ident, name, ty: field.ty.clone(), tensor })
}
