r"""Four samplers, each as one step: from the latents at one level of noise to the next, lower one.

All are pure functions; what a scheduler of diffusers remembers is an argument here.

- ``sample``: $x_t$, (B, C, h, w); ``noise_pred``: what the U-Net predicts about it, noise or
  velocity according to ``prediction_type``.
- ``a``, ``a_next``: $\bar\alpha$ (``scheduler.alphas_cumprod[t]``) at the present timestep and at
  t', the next of the loop, which the papers call t-1. After the last timestep it is 1, except
  that SD 1.x's DDIM (``set_alpha_to_one=False``) uses $\bar\alpha_0$.
- ``original``: the predicted picture $x_0$; ``epsilon``: the predicted noise.
"""

from __future__ import annotations

import math

from torch import Tensor

from sdlearn import checks
from sdlearn.noise import split_prediction


def ddpm_step(
    sample: Tensor,
    noise_pred: Tensor,
    a: float,
    a_next: float,
    noise: Tensor,
    *,
    prediction_type: str = "epsilon",
) -> Tensor:
    r"""Draw x_{t'} given x_t and the predicted x_0 (Ho et al. 2020, equations 6 and 7).

    $$x_{t'} = \frac{\sqrt{\bar\alpha_{t'}}\,\beta_t}{1-\bar\alpha_t}\, x_0
      + \frac{\sqrt{\alpha_t}\,(1-\bar\alpha_{t'})}{1-\bar\alpha_t}\, x_t
      + \sqrt{\frac{1-\bar\alpha_{t'}}{1-\bar\alpha_t}\,\beta_t}\; \xi$$

    ``noise`` is $\xi$, drawn from N(0, 1). At the last step its share is 0.
    """
    original, _ = split_prediction(sample, noise_pred, a, prediction_type)
    alpha = a / a_next
    beta = 1 - alpha
    mean = a_next**0.5 * beta / (1 - a) * original + alpha**0.5 * (1 - a_next) / (1 - a) * sample
    return mean + ((1 - a_next) / (1 - a) * beta) ** 0.5 * noise


def ddim_step(
    sample: Tensor,
    noise_pred: Tensor,
    a: float,
    a_next: float,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    prediction_type: str = "epsilon",
) -> Tensor:
    r"""Go to the predicted picture, and part of the way back (Song et al. 2020, equation 12).

    $$x_{t'} = \sqrt{\bar\alpha_{t'}}\, x_0
      + \sqrt{1-\bar\alpha_{t'}-s_t^2}\;\epsilon + s_t\,\xi, \qquad
      s_t = \eta \sqrt{\tfrac{1-\bar\alpha_{t'}}{1-\bar\alpha_t}}
      \sqrt{1-\tfrac{\bar\alpha_t}{\bar\alpha_{t'}}}$$

    ``eta`` 0 is deterministic, 1 is DDPM. ``noise`` is $\xi$, drawn from N(0, 1).

    Raises:
        ValueError, TypeError: eta outside 0 to 1, or above 0 without noise.
    """
    if checks.real("eta", eta, 0, 1, "0 adds no noise") > 0 and noise is None:
        raise ValueError(f"eta={eta} adds fresh noise: pass noise=torch.randn(sample.shape)")
    original, epsilon = split_prediction(sample, noise_pred, a, prediction_type)
    s = eta * ((1 - a_next) / (1 - a)) ** 0.5 * (1 - a / a_next) ** 0.5
    following = a_next**0.5 * original + (1 - a_next - s**2) ** 0.5 * epsilon
    return following if noise is None else following + s * noise


def euler_step(
    sample: Tensor,
    noise_pred: Tensor,
    sigma: float,
    sigma_next: float,
    *,
    prediction_type: str = "epsilon",
) -> Tensor:
    r"""Follow the slope of the probability flow (Karras et al. 2022, algorithm 1, uncorrected).

    Here the latents are $\tilde x = x_t / \sqrt{\bar\alpha_t} = x_0 + \sigma\epsilon$ with
    $\sigma = \sqrt{(1-\bar\alpha_t)/\bar\alpha_t}$, so that the slope is $\epsilon$ itself:

    $$\tilde x_{next} = \tilde x + (\sigma_{next} - \sigma)\,\epsilon$$

    The loop starts from noise times the first sigma and ends at sigma 0. The U-Net is asked about
    ``sample / (sigma**2 + 1) ** 0.5``, which is $x_t$.
    """
    a = 1 / (sigma**2 + 1)
    _, epsilon = split_prediction(a**0.5 * sample, noise_pred, a, prediction_type)
    return sample + (sigma_next - sigma) * epsilon


def dpm_solver_step(
    sample: Tensor,
    original: Tensor,
    a: float,
    a_next: float,
    *,
    last: tuple[Tensor, float] | None = None,
) -> Tensor:
    r"""Take a step of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    With $\lambda = \tfrac12 \log\frac{\bar\alpha}{1-\bar\alpha}$ and
    $r = (\lambda_t - \lambda_{last}) / (\lambda_{t'} - \lambda_t)$:

    $$x_0^{lean} = x_0 + \tfrac{1}{2r}(x_0 - x_0^{last}), \qquad
      x_{t'} = \sqrt{\bar\alpha_{t'}}\, x_0^{lean} + \sqrt{1-\bar\alpha_{t'}}\;
      \frac{x_t - \sqrt{\bar\alpha_t}\, x_0^{lean}}{\sqrt{1-\bar\alpha_t}}$$

    The second is DDIM's step to the leaned guess.

    ``last`` is x_0 and alpha_bar of the step before. Without it, and where ``a_next`` is 1, the
    step is of first order, $x_0^{lean} = x_0$.
    """
    lean = original
    if last is not None and a_next < 1:
        last_original, a_last = last
        r = (_log_snr(a) - _log_snr(a_last)) / (_log_snr(a_next) - _log_snr(a))
        lean = original + (original - last_original) / (2 * r)
    shrink = ((1 - a_next) / (1 - a)) ** 0.5
    return shrink * sample + (a_next**0.5 - a**0.5 * shrink) * lean


def _log_snr(a: float) -> float:
    return 0.5 * math.log(a / (1 - a))
