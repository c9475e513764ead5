"""Privacy: what leaks over a link, how an attacker uses it, what lowers it.

What is protected, and what not:

* Cutting a model hides nothing by itself. Whoever knows some pairs of inputs and
  messages inverts the rest (`ridge_inversion`, `decoder_inversion`); a cloud that has
  given the edge its weights can make such pairs at will.
* Fewer bits hide little: 4 bits almost nothing, signs 5 to 10 % of the variance.
* `leak_loss` lowers a measure of dependence, and stops neither an inversion nor a
  hijack. No bound follows from it.
* Flipped or noisy messages (`codecs.randomize`, `codecs.perturb`) are the only ones
  with a bound, and it is one for each value: `accountant` says what an example costs.
  512 signs at epsilon 2 cost 1,024 each time, far above what is called private.
* A malicious cloud (`fsha`) makes the edge's half an encoder that it can decode. One
  that knows the defense sees through binary and noisy codes better than one that does
  not: a claim of resistance must be held against the first. `scrutinizer` tells an edge
  that its gradients are not of the task; a cloud that does both things may pass it.
* Labels leak through gradients to whoever receives them (`label_leakage`), in a U shape
  too: the gradient of the logits names the label.
"""

from splitjax.privacy.accountant import Spent as Spent
from splitjax.privacy.accountant import epsilon_basic as epsilon_basic
from splitjax.privacy.accountant import epsilon_renyi as epsilon_renyi
from splitjax.privacy.accountant import renyi as renyi
from splitjax.privacy.budget import Budget as Budget
from splitjax.privacy.budget import budget as budget
from splitjax.privacy.detector import gradient_gap as gradient_gap
from splitjax.privacy.detector import scrutinizer as scrutinizer
from splitjax.privacy.distance_correlation import (
    distance_correlation as distance_correlation,
)
from splitjax.privacy.fsha import fsha as fsha
from splitjax.privacy.inversion import decoder_inversion as decoder_inversion
from splitjax.privacy.inversion import ridge_inversion as ridge_inversion
from splitjax.privacy.inversion import variance_left as variance_left
from splitjax.privacy.label_leakage import direction_attack as direction_attack
from splitjax.privacy.label_leakage import label_leakage as label_leakage
from splitjax.privacy.label_leakage import leak_auc as leak_auc
from splitjax.privacy.label_leakage import norm_attack as norm_attack
from splitjax.privacy.label_leakage import spectral_attack as spectral_attack
from splitjax.privacy.leak import guarded as guarded
from splitjax.privacy.leak import leak_loss as leak_loss
from splitjax.privacy.leak import sign_entropy as sign_entropy
from splitjax.privacy.similarity import mse as mse
from splitjax.privacy.similarity import psnr as psnr
from splitjax.privacy.similarity import ssim as ssim
