"""Names of request fields in known clients and APIs of image and chat models."""

from __future__ import annotations

from typing import Final

_BY_API: Final = {
    "OpenAI images": """
        background image image[] input_fidelity mask model moderation n output_compression
        output_format partial_images prompt quality response_format size stream style user
    """,
    "OpenAI chat": """
        audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens
        max_tokens messages metadata modalities model n parallel_tool_calls prediction
        presence_penalty prompt_cache_key prompt_cache_retention reasoning_effort response_format
        safety_identifier seed service_tier stop store stream stream_options temperature
        tool_choice tools top_logprobs top_p user verbosity web_search_options
    """,
    "GPUStack and llama-box": """
        cache_prompt cfg_scale control control_canny control_image control_strength guidance model
        n negative_prompt preview prompt quality sample_method sample_steps sampler
        sampling_steps schedule schedule_method seed size slg_scale slg_skip_layers slg_start
        slg_end strength stream stream_options stream_options_chunk_result
        stream_options_chunk_size stream_options_include_usage stream_options_preview
        stream_options_preview_faster style
    """,
    "Xinference": """
        guidance_scale height image_strength kwargs lora_name model_uid negative_prompt
        num_images_per_prompt num_inference_steps padding_image_to_multiple prompt request_id
        response_format return_dict sampler_name strength width denoising_strength mask_image
    """,
    "Fireworks": """
        aspect_ratio cfg_scale guidance_scale height input_image negative_prompt
        num_inference_steps output_format prompt prompt_upsampling safety_tolerance samples seed
        steps webhook_secret webhook_url width
    """,
    "mistral.rs": "height model n prompt response_format width user",
    "OpenVINO Model Server": """
        background guidance_scale height image max_sequence_length model moderation n
        negative_prompt negative_prompt_2 negative_prompt_3 num_images_per_prompt
        num_inference_steps prompt prompt_2 prompt_3 rng_seed size strength stream style user width
    """,
    "together, DeepInfra, SiliconFlow, fal": """
        batch_size disable_safety_checker enable_safety_checker guidance guidance_scale
        image_loras image_size image_url num_images num_inference_steps output_format
        prompt_enhancement reference_images seed steps sync_mode height width
    """,
    "Hugging Face": "inputs parameters options scheduler target_size guidance_scale",
    "LocalAI": "backend clip_skip mode negative_prompt ref_images scheduler seed size step stop",
    "Ollama": "context format images keep_alive options raw system template suffix think",
    "LiteLLM and LangChain": """
        api_base api_key api_version custom_llm_provider drop_params extra_body extra_headers
        fallbacks litellm_call_id litellm_logging_obj metadata mock_response num_retries timeout
    """,
    "vLLM-Omni and SGLang": """
        cfg_parallel_size cfg_text_scale diffusers_kwargs enable_teacache flow_shift
        generator_device guidance_rescale guidance_scale_2 layers lora negative_prompt
        num_frames resolution true_cfg_scale vae_use_slicing vae_use_tiling
    """,
    "AUTOMATIC1111, Forge and SD.Next": """
        alwayson_scripts batch_size cfg_scale comments denoising_strength disable_extra_networks
        distilled_cfg_scale do_not_save_grid do_not_save_samples enable_hr eta firstpass_image
        firstphase_height firstphase_width force_task_id height hr_additional_modules hr_cfg
        hr_checkpoint_name hr_distilled_cfg hr_negative_prompt hr_prompt hr_resize_x hr_resize_y
        hr_sampler_name hr_scale hr_scheduler hr_second_pass_steps hr_upscaler image_cfg_scale
        include_init_images infotext init_images initial_noise_multiplier inpaint_full_res
        inpaint_full_res_padding inpainting_fill inpainting_mask_invert latent_mask mask mask_blur
        mask_blur_x mask_blur_y mask_round n_iter negative_prompt override_settings
        override_settings_restore_afterwards prompt refiner_checkpoint refiner_switch_at
        resize_mode restore_faces s_churn s_min_uncond s_noise s_tmax s_tmin sampler_index
        sampler_name save_images scheduler script_args script_name seed seed_resize_from_h
        seed_resize_from_w send_images steps styles subseed subseed_strength tiling width
    """,
    "SillyTavern and KoboldAI Lite": """
        adetailer_face auth auto_url clip_skip enable_hr hr_scale hr_second_pass_steps hr_upscaler
        model negative_prompt prompt restore_faces sampler sampler_name scheduler seed steps
        upscaler_scale url vae workflow
    """,
    "sd-server": """
        auto_resize_ref_image batch_count cache_mode cache_option clip_skip control_image
        control_strength custom_sigmas embed_image_metadata eta flow_shift guidance high_noise
        hires increase_ref_index init_image lora mask_image negative_prompt output_compression
        output_format prompt ref_images sample_params scheduler sigmas slg strength
        txt_cfg upscale_repeats vae_tiling_params video_frames
    """,
}

#: All names.
CLIENT_FIELDS: Final = frozenset(name for names in _BY_API.values() for name in names.split())
