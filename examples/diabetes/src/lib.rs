//! Predicts how far diabetes has progressed after a year, from a record of ten measurements.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tenon_sdk::{Error, Json, Model, Result, Tensor};

/// What the training script measured on its records: the model takes the numbers scaled and the categories as
/// zeros and a one.
#[derive(Deserialize)]
struct Preprocessing {
    numeric: Vec<Numeric>,
    categorical: Vec<Categorical>,
}

#[derive(Deserialize)]
struct Numeric {
    name: String,
    mean: f64,
    scale: f64,
}

#[derive(Deserialize)]
struct Categorical {
    name: String,
    categories: Vec<String>,
}

#[derive(Serialize)]
struct Prediction {
    /// 25 for the mildest of the data set, 346 for the worst.
    progression: f32,
}

type Record = Map<String, Value>;

#[tenon_sdk::function]
fn diabetes(record: Json<Record>) -> Result<Json<Prediction>> {
    let preprocessing: Preprocessing =
        serde_json::from_str(include_str!("../model/preprocessing.json")).map_err(Error::failed)?;
    let features = preprocessing.features(&record)?;
    let features = Tensor::new([1, features.len()], features)?;
    let outputs = Model::named("diabetes")?.infer([("features", features)])?;
    match *outputs.tensor::<f32>("progression")? {
        [progression] => Ok(Json(Prediction { progression })),
        _ => Err(Error::failed("the model answered more than one record")),
    }
}

impl Preprocessing {
    fn features(&self, record: &Record) -> Result<Vec<f32>> {
        self.refuse_unknown(record)?;
        let mut features = Vec::new();
        for column in &self.numeric {
            features.push(column.feature(record)?);
        }
        for column in &self.categorical {
            column.features(record, &mut features)?;
        }
        Ok(features)
    }

    fn refuse_unknown(&self, record: &Record) -> Result<()> {
        let numeric = self.numeric.iter().map(|column| &column.name);
        let columns: Vec<&String> =
            numeric.chain(self.categorical.iter().map(|column| &column.name)).collect();
        match record.keys().find(|field| !columns.contains(field)) {
            Some(field) => Err(invalid(field, &format!("is not one of {columns:?}"))),
            None => Ok(()),
        }
    }
}

impl Numeric {
    fn feature(&self, record: &Record) -> Result<f32> {
        let value = field(record, &self.name)?;
        let number =
            value.as_f64().ok_or_else(|| invalid(&self.name, &format!("is {value}, not a number")))?;
        Ok(((number - self.mean) / self.scale) as f32)
    }
}

impl Categorical {
    fn features(&self, record: &Record, features: &mut Vec<f32>) -> Result<()> {
        let value = field(record, &self.name)?;
        let category = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        if !self.categories.contains(&category) {
            return Err(invalid(&self.name, &format!("is {value}, not one of {:?}", self.categories)));
        }
        features.extend(self.categories.iter().map(|known| f32::from(u8::from(*known == category))));
        Ok(())
    }
}

fn field<'a>(record: &'a Record, name: &str) -> Result<&'a Value> {
    record.get(name).ok_or_else(|| invalid(name, "is missing"))
}

fn invalid(field: &str, what: &str) -> Error {
    Error::new("invalid-record", format!("field `{field}` {what}")).with_status(422)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Record), expected: &str) {
        let preprocessing: Preprocessing =
            serde_json::from_str(include_str!("../model/preprocessing.json")).unwrap();
        let record = r#"{"age": 59, "sex": "2", "bmi": 25.5, "bp": 95.33, "s1": 190, "s2": 139.4, "s3": 35,
            "s4": 5.43, "s5": 4.3567, "s6": 117}"#;
        let mut record: Record = serde_json::from_str(record).unwrap();
        change(&mut record);
        match preprocessing.features(&record) {
            Ok(features) => assert_eq!(format!("{:?}", &features[8..]), expected),
            Err(error) => assert_eq!(error.message(), expected),
        }
    }

    #[test]
    fn a_record_becomes_features_or_an_error_that_names_the_field() {
        check(|_| {}, "[2.2028325, 0.0, 1.0]");
        check(|record| drop(record.insert("sex".into(), 1.into())), "[2.2028325, 1.0, 0.0]");
        check(|record| drop(record.remove("bmi")), "field `bmi` is missing");
        check(
            |record| drop(record.insert("age".into(), "old".into())),
            "field `age` is \"old\", not a number",
        );
        check(
            |record| drop(record.insert("sex".into(), 3.into())),
            "field `sex` is 3, not one of [\"1\", \"2\"]",
        );
    }
}
