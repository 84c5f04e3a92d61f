"""DeepGEMM's package, over `luciola.plugins.deepgemm`: names of 2.6 and, for frameworks that use them, of 1.0.

What SM90 has no kernel for says so when it is called. `deep_gemm.legacy` and `deep_gemm.jit` are not here.
"""

from luciola.plugins.lazy import lazy

__version__ = "2.6.1"

__all__: list[str] = """
    SymmBuffer align bf16_gemm_nn bf16_gemm_nt bf16_gemm_tn bf16_gemm_tt bf16_m_grouped_gemm_nt_masked
    bf16_mega_moe cast_back_from_fp4 ceil_div ceil_to_ue8m0 cublaslt_gemm_nn cublaslt_gemm_nt cublaslt_gemm_tn
    cublaslt_gemm_tt einsum fp8_einsum fp8_fp4_gemm_nn fp8_fp4_gemm_nt fp8_fp4_gemm_tn fp8_fp4_gemm_tt
    fp8_fp4_mega_moe fp8_fp4_mqa_logits fp8_fp4_paged_mqa_logits fp8_gemm_nn fp8_gemm_nt
    fp8_gemm_nt_skip_head_mid fp8_gemm_tn fp8_gemm_tt fp8_m_grouped_gemm_nt_masked fp8_mqa_logits
    fp8_paged_mqa_logits gemm_fp8_fp8_bf16_nt get_best_configs get_col_major_tma_aligned_tensor
    get_k_alignment_for_contiguous_layout get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor
    get_m_alignment_for_contiguous_layout get_mk_alignment_for_contiguous_layout
    get_mn_major_tma_aligned_packed_ue8m0_tensor get_mn_major_tma_aligned_tensor get_num_sms
    get_paged_mqa_logits_metadata get_pdl get_symm_buffer_for_mega_moe get_tc_util
    get_theoretical_mk_alignment_for_contiguous_layout get_tma_aligned_size k_grouped_bf16_gemm_tn_contiguous
    k_grouped_fp8_gemm_nt_contiguous k_grouped_fp8_gemm_tn_contiguous k_grouped_wgrad_gemm_fp8_fp8_fp32_nt
    m_grouped_bf16_gemm_nn_contiguous m_grouped_bf16_gemm_nt_contiguous m_grouped_bf16_gemm_nt_masked
    m_grouped_fp8_fp4_gemm_nn_contiguous m_grouped_fp8_fp4_gemm_nt_contiguous m_grouped_fp8_fp4_gemm_nt_masked
    m_grouped_fp8_gemm_nn_contiguous m_grouped_fp8_gemm_nt_contiguous m_grouped_fp8_gemm_nt_masked
    m_grouped_gemm_fp8_fp8_bf16_nt_contiguous m_grouped_gemm_fp8_fp8_bf16_nt_masked pack_ue8m0_to_int
    per_block_cast_to_fp8 per_channel_cast_to_fp8 per_custom_dims_cast_to_fp8 per_token_cast_to_fp4
    per_token_cast_to_fp8 set_block_size_multiple_of set_ignore_compile_dims
    set_mk_alignment_for_contiguous_layout set_num_sms set_pdl set_tc_util tf32_hc_prenorm_gemm
    transform_sf_into_required_layout transform_weights_for_mega_moe transpose_packed_fp4
    unpack_ue8m0_from_int wgrad_gemm_fp8_fp8_fp32_nt
""".split()  # noqa: PLE0605, SIM905 (a list would be a page long)

__getattr__ = lazy(__name__, {"luciola.plugins.deepgemm": " ".join(__all__)}, {"testing", "utils"})
