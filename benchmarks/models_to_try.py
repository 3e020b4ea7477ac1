"""The models of docs/models.md, for `make_models_table.py`."""

from __future__ import annotations

# What to try, by module of timm: at least one of each that has attention, most of the plain ones.
MODELS = {
    "vision_transformer": """
        vit_tiny_patch16_224 vit_small_patch32_384 vit_base_patch8_224 vit_base_patch16_224_miil
        vit_large_patch16_224 vit_giant_patch14_224 vit_medium_patch16_gap_240 vit_base_patch16_plus_240
        vit_base_patch16_rpn_224 vit_small_patch16_36x1_224 vit_mediumd_patch16_reg4_gap_256
        vit_little_patch16_reg4_gap_256 vit_wee_patch16_reg1_gap_256 vit_so150m_patch16_reg4_map_256
        vit_so150m2_patch16_reg1_gap_256 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2
        vit_giant_patch14_reg4_dinov2 vit_base_patch14_reg1_tipsv2 vit_base_patch16_radio_v3
        vit_so400m_patch16_radio_v4 vit_intern300m_patch14_448 vit_base_patch32_clip_quickgelu_224
        vit_xsmall_patch16_clip_224 vit_gigantic_patch14_clip_224 vit_base_patch16_siglip_224
        vit_base_patch16_siglip_gap_256 vit_so400m_patch14_siglip_224 vit_giantopt_patch16_siglip_256
        eva_large_patch14_196 flexivit_small beit3_base_patch16_224 aimv2_large_patch14_224
        aimv2_huge_patch14_224 test_vit test_vit2 test_vit3 test_vit4
        vit_base_patch16_xp_224 vit_pwee_patch16_reg1_gap_256 vit_small_patch16_18x2_224
        vit_dwee_patch16_reg1_gap_256 vit_dpwee_patch16_reg1_gap_256
    """,
    "deit": """
        deit_tiny_patch16_224 deit_small_distilled_patch16_224 deit3_small_patch16_224
        deit3_huge_patch14_224
    """,
    "vision_transformer_hybrid": """
        vit_small_r26_s32_224 vit_base_r50_s16_224 vit_tiny_r_s16_p8_224 vit_small_resnet26d_224
        vit_base_mci_224
    """,
    "vitamin": "vitamin_small_224 vitamin_large2_224",
    "eva": """
        eva02_tiny_patch14_224 eva02_base_patch16_clip_224 eva02_large_patch14_448
        eva02_enormous_patch14_clip_224 eva_giant_patch14_224 eva_giant_patch14_clip_224
        vit_small_patch16_dinov3 vit_tiny_patch16_dinov3_qkvb vit_huge_plus_patch16_dinov3
        vit_small_patch16_lingbot vit_pe_core_tiny_patch16_384
        vit_pe_core_gigantic_patch14_448 vit_pe_lang_large_patch14_448 vit_pe_spatial_tiny_patch16_512
        vit_medium_patch16_rope_reg1_gap_256 vit_betwixt_patch16_rope_reg4_gap_256
        vit_small_patch16_rope_224 vit_small_patch16_rope_ape_224 vit_small_patch16_rope_mixed_224
        vit_small_patch16_rope_mixed_ape_224
    """,
    "beit": "beit_base_patch16_224 beitv2_base_patch16_224 beit_large_patch16_384",
    "vision_transformer_relpos": """
        test_vit_relpos vit_relpos_small_patch16_224 vit_relpos_base_patch16_cls_224
        vit_relpos_base_patch16_clsgap_224 vit_relpos_medium_patch16_rpn_224
        vit_relpos_base_patch32_plus_rpn_256 vit_srelpos_small_patch16_224
    """,
    "naflexvit": """
        naflexvit_base_patch16_gap naflexvit_base_patch16_par_gap naflexvit_so400m_patch16_siglip
    """,
    "vision_transformer_sam": "samvit_base_patch16 samvit_base_patch16_224",
    "deepseek_vit": "deepseek_vit_412m deepseek_vit_412m_enc",
    "gemma4_vit": "gemma4_vit_167m gemma4_vit_167m_enc",
    "qwen3_vit": "qwen3_vit_88m qwen3_vit_88m_enc",
    "cait": "cait_xxs24_224",
    "coat": "coat_lite_tiny coat_tiny",
    "convit": "convit_tiny",
    "cpubone": "cpubone_b0_bfrobust",
    "crossvit": "crossvit_tiny_240",
    "csatv2": "csatv2",
    "byoanet": "botnet26t_256 halonet26t",
    "davit": "davit_tiny",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "fastvit": "fastvit_sa12",
    "focalnet": "focalnet_tiny_srf",
    "gcvit": "gcvit_xxtiny",
    "hiera": "hiera_tiny_224 hiera_base_abswin_256",
    "hieradet_sam2": "hieradet_small sam2_hiera_tiny",
    "iformer": "iformer_s",
    "levit": "levit_128s levit_conv_128s",
    "lowformer": "lowformer_b0",
    "maxxvit": "coatnet_nano_rw_224 maxvit_tiny_tf_224",
    "metaformer": "caformer_s18 poolformer_s12",
    "mlp_mixer": "mixer_s16_224 resmlp_12_224 gmlp_s16_224",
    "mobilenetv5": "mobilenetv5_base",
    "mobilevit": "mobilevit_xxs mobilevitv2_050",
    "mvitv2": "mvitv2_tiny mvitv2_base_cls",
    "nest": "nest_tiny",
    "nextvit": "nextvit_small",
    "pit": "pit_ti_224 pit_s_distilled_224",
    "pvt_v2": "pvt_v2_b0",
    "sequencer": "sequencer2d_s",
    "shvit": "shvit_s1",
    "swiftformer": "swiftformer_xs",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_ns_224",
    "tiny_vit": "tiny_vit_5m_224",
    "tnt": "tnt_s_patch16_224",
    "twins": "twins_pcpvt_small twins_svt_small",
    "visformer": "visformer_tiny",
    "volo": "volo_d1_224",
    "xcit": "xcit_nano_12_p16_224",
}
# One of each module without a transformer.
OTHERS = """
    byobnet:repvgg_a0 convmixer:convmixer_768_32 convnext:convnext_atto cspnet:cs3darknet_s
    cspnext:cspnext_s densenet:densenet121 dla:dla34 dpn:dpn68 efficientnet:efficientnet_b0
    efficientvim:efficientvim_m1 fasternet:fasternet_t0 ghostnet:ghostnet_050 hardcorenas:hardcorenas_a
    hgnet:hgnet_tiny hrnet:hrnet_w18_small inception_next:inception_next_atto
    inception_resnet_v2:inception_resnet_v2 inception_v3:inception_v3 inception_v4:inception_v4
    lcnetv2:lcnetv2_small mambaout:mambaout_femto mobilenetv3:mobilenetv3_small_050 nasnet:nasnetalarge
    nfnet:nfnet_l0 pnasnet:pnasnet5large rdnet:rdnet_tiny regnet:regnetx_002 repghost:repghostnet_050
    repvit:repvit_m0_9 res2net:res2net50_26w_4s resnest:resnest14d resnet:resnet18 resnetv2:resnetv2_50
    rexnet:rexnet_100 selecsls:selecsls42 senet:legacy_senet154 sknet:skresnet18 starnet:starnet_s050
    tresnet:tresnet_m vgg:vgg11 vovnet:ese_vovnet19b_dw xception:legacy_xception
    xception_aligned:xception41
"""
ELSEWHERE = """
    torchvision:vit_b_16 torchvision:vit_b_32 torchvision:swin_t torchvision:swin_v2_t torchvision:maxvit_t
    torchvision:mvit_v2_s torchvision:resnet18
    open_clip:ViT-B-32 open_clip:ViT-B-16-quickgelu open_clip:ViT-S-16-alt open_clip:ViT-B-16-SigLIP
    open_clip:EVA02-B-16 open_clip:PE-Core-T-16-384 open_clip:ViTamin-S open_clip:coca_ViT-B-32
    open_clip:ViT-L-14-CLIPA open_clip:RN50 open_clip:convnext_tiny open_clip:MobileCLIP2-S0
"""
# With all their blocks.
WHOLE = """
    vit_small_patch16_224 deit3_small_patch16_224 vit_small_patch14_reg4_dinov2 vit_base_patch16_siglip_224
    eva02_tiny_patch14_224 vit_small_patch16_dinov3 vit_small_patch16_rope_mixed_224 beit_base_patch16_224
    vit_relpos_small_patch16_224 vit_large_patch16_sapiens2
"""
TRANSFORMERS = """
    transformers:clip_vision_model transformers:siglip_vision_model transformers:siglip2_vision_model
    transformers:dinov2 transformers:dinov2_with_registers transformers:dinov3_vit transformers:vit
    transformers:llava transformers:llava_next transformers:llava_onevision
    transformers:qwen2_vl transformers:qwen2_5_vl transformers:qwen2_5_vl_vision
    transformers:qwen3_vl transformers:qwen3_5 transformers:glm4v transformers:cosmos3_edge
    transformers:clip transformers:siglip transformers:beit transformers:deit transformers:swin
    transformers:aimv2 transformers:vipllava transformers:video_llava transformers:llava_next_video
    transformers:internvl transformers:paligemma transformers:idefics3 transformers:gemma3
    transformers:smolvlm transformers:lfm2_vl
    transformers:mllama transformers:blip-2
    transformers:qwen2_5_omni_thinker transformers:paddleocr_vl
    transformers:video_llama_3
"""
# Smaller images than the model's own, where those would take minutes.
SIZES = {
    "vit_large_patch16_sapiens2": (256, 192),
    "vit_giant_patch14_reg4_dinov2": (224, 224),
    "vit_pe_core_gigantic_patch14_448": (224, 224),
}


def timm_names() -> list[str]:
    """The models of timm to try."""
    return [name for names in MODELS.values() for name in names.split()]


def other_names() -> list[str]:
    """The models of timm that are no transformers."""
    return [pair.partition(":")[2] for pair in OTHERS.split()]


def named(label: str) -> list[str]:
    """All names of one table, in its order."""
    return {
        "timm": timm_names(),
        "elsewhere": ELSEWHERE.split(),
        "whole": WHOLE.split(),
        "others": other_names(),
        "transformers": TRANSFORMERS.split(),
    }[label]


def vision_language_classes() -> dict[str, str]:
    """By type of configuration, the classes that transformers lists as models of images and text."""
    from transformers.models.auto import modeling_auto as auto

    classes = dict[str, str]()
    for name in ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"):
        for kind, found in getattr(auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}).items():
            classes[kind] = found if isinstance(found, str) else found[0]
    return classes
