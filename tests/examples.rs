//! The examples do what their READMEs say.

use serde_json::{Value, json};

use crate::harness::{TestHost, available, guests, repository, run};
use crate::raw::{backends, only};

fn example(path: &str) -> Vec<u8> {
    let path = repository().join("examples").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn json_of(path: &str) -> Value {
    serde_json::from_slice(&example(path)).expect("the file is JSON")
}

/// The app of this repository's own spin.toml.
async fn examples(backend: &str) -> TestHost {
    guests();
    TestHost::at(repository().join("spin.toml")).config(only(backend)).start().await
}

#[test]
fn the_index_says_what_there_is() {
    run(async {
        let text = examples("tract").await.get("/").await.expect(200).text();
        assert!(["/digits", "/diabetes", "/hello-nn"].iter().all(|route| text.contains(route)), "{text}");
    });
}

#[test]
fn a_seven_is_read() {
    for backend in backends() {
        run(async {
            let host = examples(backend).await;
            let answer = host.post("/digits", "image/png", example("digits/seven.png")).await.expect(200);
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.json()["digit"], 7, "{backend}: {}", answer.text());
            let scores: Vec<f64> =
                serde_json::from_value(answer.json()["scores"].clone()).expect("ten numbers");
            assert!(scores.len() == 10 && (scores.iter().sum::<f64>() - 1.0).abs() < 1e-4, "{scores:?}");
            // What `curl --data-binary` sends where nobody says a type.
            let urlencoded = "application/x-www-form-urlencoded";
            let same = host.post("/digits", urlencoded, example("digits/seven.png")).await.expect(200);
            assert_eq!(same.json()["digit"], 7);
        });
    }
}

#[test]
fn what_is_no_image_is_the_caller_s_mistake() {
    run(async {
        let host = examples("tract").await;
        let seven = example("digits/seven.png");
        for body in [b"not an image".to_vec(), Vec::new(), seven[..seven.len() / 2].to_vec()] {
            let answer = host.post("/digits", "image/png", body).await;
            assert!((400..500).contains(&answer.status.as_u16()), "{}: {}", answer.status, answer.text());
        }
        host.post("/digits", "image/png", seven).await.expect(200);
    });
}

#[test]
fn diabetes_predicts_what_was_recorded() {
    let records = json_of("diabetes/testdata/records.json");
    let records = records.as_array().expect("a list of records");
    assert!(records.len() > 10);
    for backend in backends() {
        run(async {
            let host = examples(backend).await;
            for record in records {
                let body = record["record"].to_string();
                let answer = host.post("/diabetes", "application/json", body).await.expect(200).json();
                let (given, expected) = (answer["progression"].as_f64(), record["expected"].as_f64());
                let (given, expected) = (given.expect("a number"), expected.expect("a number"));
                assert!((given - expected).abs() < 1e-3, "{backend} {record}: {given}");
            }
        });
    }
}

#[test]
fn diabetes_names_the_field_that_is_wrong() {
    run(async {
        let host = examples("tract").await;
        let mut record = json_of("diabetes/testdata/records.json")[0]["record"].take();
        record["bmi"] = json!("high");
        let reason = host.post("/diabetes", "application/json", record.to_string()).await;
        assert!(reason.problem(422, "invalid-record").contains("`bmi`"));
    });
}

#[test]
fn hello_comes_with_a_digit() {
    for backend in backends() {
        run(async {
            let host = examples(backend).await;
            let hello = host.get("/hello-nn/ada").await.expect(200);
            assert_eq!(hello.json()["hello"], "ada");
            assert_eq!((&hello.json()["digit"], &hello.json()["backend"]), (&json!(7), &json!(backend)));
            assert!(hello.json()["score"].as_f64().expect("a number") > 0.9, "{}", hello.text());
            assert_eq!(hello.header("x-tenon-backend"), backend);
            assert_eq!(host.get("/hello-nn").await.expect(200).json()["hello"], "world");
        });
    }
}

/// The embed example on one backend; `None` where its model was not made.
async fn embed(backend: &str) -> Option<TestHost> {
    let folder = repository().join("examples/embed");
    let how = "see examples/embed/model/README.md";
    available("minilm", Some(folder.join("model/minilm.onnx")), how)?;
    guests();
    Some(TestHost::at(folder.join("spin.toml")).config(only(backend)).start().await)
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).expect("a list of numbers")
}

#[test]
fn embeddings_are_those_of_the_reference() {
    let reference = json_of("embed/model/reference.json");
    let reference = reference.as_array().expect("a list of sentences");
    for backend in backends() {
        run(async {
            let Some(host) = embed(backend).await else { return };
            let sentences: Vec<&Value> = reference.iter().map(|row| &row["sentence"]).collect();
            let check = async |sentences: &[&Value], rows: &[Value]| -> f64 {
                let body = json!({ "sentences": sentences }).to_string();
                let answer = host.post("/embed", "application/json", body).await.expect(200).json();
                let given = answer["embeddings"].as_array().expect("embeddings");
                assert_eq!(given.len(), rows.len());
                let pairs = given.iter().zip(rows);
                pairs
                    .map(|(given, row)| cosine(&numbers(given), &numbers(&row["embedding"])))
                    .fold(1.0, f64::min)
            };
            // Together, padded to the longest, and the first by itself.
            let together = check(&sentences, reference).await;
            let alone = check(&sentences[..1], &reference[..1]).await;
            eprintln!("{backend}: the least cosine of {} embeddings is {together:.6}", reference.len());
            assert!(together > 0.999 && alone > 0.999, "{backend}: {together} {alone}");
        });
    }
}

#[test]
fn search_ranks_as_a_person_would() {
    let documents = [
        "The cat sleeps on the sofa all afternoon.",
        "Interest rates were raised by the central bank.",
        "Bake the bread for forty minutes until the crust is brown.",
        "The striker scored twice in the second half.",
    ];
    let questions = [
        ("a pet taking a nap", 0),
        ("monetary policy", 1),
        ("how long does a loaf stay in the oven", 2),
        ("who won the football match", 3),
    ];
    for backend in backends() {
        run(async {
            let Some(host) = embed(backend).await else { return };
            for (query, nearest) in questions {
                let body = json!({ "query": query, "documents": documents }).to_string();
                let answer = host.post("/embed", "application/json", body).await.expect(200).json();
                assert_eq!(answer["ranked"][0]["document"], documents[nearest], "{backend}: {answer}");
                assert_eq!(answer["ranked"].as_array().expect("all of them").len(), documents.len());
            }
        });
    }
}
