//! The generated files are those of the Python recipe.

use sha2::{Digest, Sha256};

use super::*;

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn tiny_weights_are_those_of_the_recipe() {
    let pinned = [
        ("qwen2", "0e3ba709cfa05a9c506b99b7409c5fec36d6ec09e027ddf4a5a99fc484a7b1bb"),
        ("qwen2-yarn", "146f5cd6386f4541c269b6bc67bfc01487ce6b8a014c02d3c502d503d4fb671f"),
        ("qwen3", "0d7974e7c446cc4e3939e97e58bf0f90f494bb0b6ba7cde9fb2c1c907231c11b"),
        ("llama", "be1aacadc55415a27b669af40854bc9e341cc6b54da40b9faf7f5f894e1a2c02"),
        ("mistral", "5afe8ccde8b3ef090a538e681b749885e481ffb9fe4c64b3c325fced079f5749"),
        ("phi3", "d673e8a1ec1dee2acbbe5f7b79842a1d22d83a2b900f4d09ab19fae7931ebd19"),
        ("gemma2", "b521b319b2d15cbaafd0b873ed4f04853283c62682cf47e0ecd38066702498d8"),
        ("gemma3", "cb3ee2426e1d59a956de9c9400d4f768c677d2074874ad20c479d9fd80437eeb"),
        ("mixtral", "2edf010fecf108d8038fbfd8f527114ace9503587b3e2649a18104251b35b5a5"),
        ("qwen3-moe", "5dc80ebcb2aa0c1094a2389ac53035068bfa1e5f2eb66cd5da3214f62486c03b"),
    ];
    assert_eq!(pinned.map(|(arch, _)| arch), ARCHS);
    for (arch, expected) in pinned {
        assert_eq!(digest(&safetensors_file(&tiny_tensors(arch, 1))), expected, "{arch}, seed 1");
    }
}

#[test]
fn tiny_ggufs_are_those_of_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let pinned = [
        ("llama-q4_k_m", "f88317840654ce147765b34ec6c363aeb19396f721a078b3f2fcdc071e36a68b"),
        ("llama-q8_0", "78ea995dc4a3811149706a6d415de88c7d8e46022c045edee0348b5a02f43ce0"),
        ("llama-q5_k", "307a06a0f32c4e724f49b8c3e04573a178dd30057843cfd426b87af14ad1f74d"),
        ("qwen2-q5_1", "e6f1974d295e5c62e9c4b38729a4e60815ce88362fe72ec7b1d35479b62bfac8"),
        ("qwen2-q4_0", "35531ee9f782ded2e17c3893cd2346fcea90c8bc3575063c01d92369eb6849c3"),
    ];
    assert_eq!(pinned.map(|(name, _)| name), GGUFS);
    for (name, expected) in pinned {
        let path = write_tiny_gguf(folder.path(), name, 1);
        assert_eq!(digest(&std::fs::read(path).unwrap()), expected, "{name}, seed 1");
    }
}

#[test]
fn tiny_tokenizer_is_that_of_the_recipe() {
    let text = tokenizer::tokenizer_json().to_string();
    assert_eq!(digest(text.as_bytes()), "5cc56e066181aebeb2dc081f182a36e0170f3fdcc954a75dad112b2d60f001b7");
}

#[test]
fn tiny_quantised_checkpoints_are_those_of_the_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let pinned = [
        ("awq", "a06f1d9c975ddb2d429a6aa9a1472c812a1480e0ac479b22443a6e792929b3f0"),
        ("gptq-sym", "2a3fb241cb0c02a3980be5a2ec03274d540080e422b09cb8be9798d455bbac2d"),
        ("gptq-asym", "a565a9b96e87890e51385be2b2b09b2eea96a423d58ecc61eedd52bd87c52363"),
        ("gptq-desc", "b23bbe8aeb585a0950e4bc4c751a7f4588746288a355c2727c7e97f82a7dd298"),
        ("gptq-channel", "d922d7d2c49b10bc1a0923b3820867eecaac5d267786cd317278d8fe42eb3057"),
        ("gptq-int8", "be3cb089ca02a0656f15c99f18e6d411a67f178dd0e32bf3939ba0025727ba8a"),
        ("gptq-v2", "542b183f4ba2290e3cc2828f0644805a9959c493695c13b5f78a8509669256b3"),
        ("bnb-nf4", "5c090beede34007da2a3d43129ada708434928b8d46390142c91bb4f7e273df5"),
        ("bnb-nf4-dq", "87ad40ae00860492c2d9ab9b3e6c87a08ca9f5dd0d0af32e5dd07332f9a3e301"),
        ("bnb-fp4", "c8b777428d1232bfba34bd05e6920cff2e4e1a0f603fab395f05954d2cf1face"),
        ("fp8-channel", "7f451c0b46c6664d2c8555de6da88e2ef15879453ebc4b75d7208b4cf235bccd"),
        ("fp8-tensor", "c166819ac2df5051566ba781bc76bc057a1ed533a85f7ef5b145cd61125fafdf"),
        ("fp8-ct-block", "16a038d10730861d5cf89997152939dfae8fdef0f493a29275c595d4d1a59d87"),
        ("fp8-block", "da544113590122b262a9018ec3c7c41c7579d4d4218b108472db450331a33341"),
        ("nvfp4", "ae128455ce6025ed67560a4cbe8d0a062ead319d47c782cb10dc1220892ede51"),
        ("nvfp4a16", "e6bdb15f3b985d7a06de924f659c2fa42803f7b022384f6965f1558d04ad88ba"),
        ("mxfp4a16", "d4cb5f1bb0c4125135a5e4971a0b613fb454198c0e29c2eb672a680f7f254d7d"),
        ("ct-int4", "e91c982210360ca815cf299706e2433d381d7b8704750c6969665f0b5b031b8f"),
        ("ct-int4-asym", "c144620f258a5dc708eab7370eaf82b9a9d0aad8e57bf40bc83edd77fa9e92a1"),
    ];
    assert_eq!(pinned.map(|(format, _)| format), QUANTISED);
    let mut wrong = Vec::new();
    for (format, expected) in pinned {
        let path = write_quantised(folder.path(), format, 1);
        if digest(&std::fs::read(path.join("model.safetensors")).unwrap()) != expected {
            wrong.push(format);
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}, seed 1");
}
