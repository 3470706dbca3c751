"""One step of the reverse process: predict the clean image, make it consistent with the data, push the noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import torch
from jaxtyping import Bool, Complex, Float, UInt8
from torch import Tensor, nn

from ..guidance.guiders import Guidance, images_to_push
from ..guidance.losses import guidance_weight, joint_weights
from ..mri.operators import channels_to_complex
from ..schedulers.sampler import NoiseLevel
from ..utils.late_flags import LateFlags
from .branches import Branches, Selection
from .networks import FiniteWatch, batches, fastest_batch_size, predict, segment, size_multiple
from .problem import Problem
from .scale_watch import ScaleWatch
from .symmetry import Symmetry

__all__ = ["Denoiser", "Estimate", "Step", "TwoStageGradient"]

Channels = Float[Tensor, "image 2 y x"]


@dataclass(frozen=True)
class Step:
    """What is the same for all images of one network evaluation.

    Attributes:
        timestep: timestep at the input of the network.
        level: noise level of the images.
        n_iterations: most conjugate gradient iterations of data consistency.
        guidance: guidance that pushes in this step, each with its strength b (paper Eq. 14), positive.
        symmetry: change of the images that the prior sees; it is undone in the prior's output.
    """

    timestep: Tensor
    level: NoiseLevel
    n_iterations: int
    guidance: Sequence[tuple[Guidance, float]]
    symmetry: Symmetry = field(default_factory=Symmetry)


@dataclass(frozen=True)
class Estimate:
    """What one network evaluation gives for a batch of images; every entry is `(image, 2, y, x)`, float32.

    Attributes:
        model_output: output of the prior.
        x0: clean image that the prior predicts (paper Eq. 4).
        eps: noise that the prior predicts.
        x0_consistent: clean image made consistent with the measurement (paper Eq. 5).
        push: push that guidance adds to the noise (paper Eqs. 12 to 14); zero without guidance.
    """

    model_output: Channels
    x0: Channels
    eps: Channels
    x0_consistent: Channels
    push: Channels

    @classmethod
    def like(cls, images: Channels) -> "Estimate":
        """Make room for the estimate of these images."""
        model_output, x0, eps, x0_consistent = (torch.empty_like(images) for _ in range(4))
        return cls(model_output, x0, eps, x0_consistent, torch.zeros_like(images))

    def put(self, selected: Selection, part: "Estimate") -> None:
        """Write the estimate of some images."""
        for entry in fields(self):
            getattr(self, entry.name)[selected.index] = getattr(part, entry.name).detach()


class TwoStageGradient:
    """Computes gradients of scores with respect to noisy images: through physics and losses, then the network.

    The graph is cut behind the network. The gradient with respect to the network's output is scaled to order one
    before it goes through the network and scaled back after, so that a network in half precision can hold it. Only
    gradients with respect to images are computed, none with respect to weights.

    Attributes:
        noisy: noisy images, a leaf of the graph that scores are computed in.
        output: output of the network for them, another leaf.
    """

    def __init__(self, network: Callable[[Channels], Channels], noisy: Channels) -> None:
        """Run the network forward.

        Args:
            network: function from noisy images to the output of the prior.
            noisy: noisy images.

        Raises:
            ValueError: the network gives no gradient.
        """
        self._start = noisy.detach().clone().requires_grad_()
        self._output = network(self._start)
        if not self._output.requires_grad:
            raise ValueError(
                "`unet` must give a gradient with respect to its input for guidance, but it runs in `torch.no_grad` "
                "or `inference_mode`. Take that away, or reconstruct with target='none'."
            )
        self.noisy, self.output = (tensor.detach().requires_grad_() for tensor in (self._start, self._output))

    def __call__(self, score: Float[Tensor, " image"], keep_graph: bool = False) -> Channels:
        """Return the gradient of each image's score.

        Args:
            score: score `(image,)`, computed from `noisy` and `output`; each image's from that image only.
            keep_graph: flag that says whether the gradient of another score will be asked for.
        """
        direct, inner = torch.autograd.grad(
            score.sum(), (self.noisy, self.output), retain_graph=keep_graph, allow_unused=True, materialize_grads=True
        )
        size = inner.abs().amax(dim=(1, 2, 3), keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        through = torch.autograd.grad(self._output, self._start, inner / size, retain_graph=keep_graph)[0]
        return direct + size * through


@dataclass(frozen=True)
class Steering:
    """What a guidance that weighs its pushes by all slices of a step has found so far.

    Attributes:
        measured: what `Guidance.measure` returned for each image.
        gradient: gradient of each image's score.
    """

    measured: Float[Tensor, " image"]
    gradient: Channels


class Denoiser:
    """Computes the estimate of all images of a step, in network calls of at most `batch_size` images.

    On a CPU, network calls of a step get fewer images where that is faster, see `networks.fastest_batch_size`.

    Only images with something to push get a graph. Which these are is known after the forward pass: those pushed in
    the step before are expected to be pushed again, and the others are looked at without a graph first. Images of a
    slice that are still equal are computed once. An accelerator is never left without work: the host reads what
    depends on images while the device computes others.

    Attributes:
        are_equal: flag, true while all images of a slice are the same. To be set to false if they are changed.
    """

    def __init__(
        self,
        unet: nn.Module,
        segmentation_model: nn.Module | None,
        problem: Problem,
        branches: Branches,
        batch_size: int | None = None,
    ) -> None:
        """Expect all images to be pushed, except towards a lower bound: few slices have all classes.

        Args:
            unet: the prior.
            segmentation_model: the segmentation model; `None` without.
            problem: measurement of all slices.
            branches: slice, class and target of each image.
            batch_size: most images in a network call; `None` for no bound.
        """
        self._unet, self._segmentation_model, self._problem = unet, segmentation_model, problem
        self._branches, self._batch_size = branches, batch_size
        fastest = fastest_batch_size(unet, problem.kspace.shape[-2:], problem.kspace.device)
        self._step_batch_size = min((size for size in (batch_size, fastest) if size is not None), default=None)
        self.are_equal = branches.share_noise
        is_plain = branches.class_numbers == (0,)
        of_slice = [is_plain or target == "upper" for _ in branches.class_numbers for target in branches.targets]
        self._is_pushed = of_slice * branches.n_slices
        self._wishes: list[tuple[list[int], LateFlags]] = []
        self._steering: dict[int, Steering] = {}
        self._selections: dict[tuple[int, ...], Selection] = {}
        self._watch, self._scale_watch = FiniteWatch(), ScaleWatch()

    def __call__(self, noisy: Channels, step: Step) -> Estimate:
        """Estimate all images in a step.

        Args:
            noisy: noisy images at the input of the prior.
            step: timestep, noise level and guidance.

        Raises:
            ValueError: a network returned NaN or infinity: on an accelerator, in the step before the last.
        """
        estimate = self._estimate(noisy, step)
        self._scale_watch.note(step.level, estimate.x0, estimate.x0_consistent)
        return estimate

    def _estimate(self, noisy: Channels, step: Step) -> Estimate:
        """Estimate all images, those of a slice that are equal once."""
        branches, every = self._branches, range(len(self._branches))
        self._watch.begin_step()
        estimate = Estimate.like(noisy)
        if not step.guidance and self.are_equal:
            self._estimate_plainly(estimate, noisy, branches.first_of_slices, step)
            firsts = (getattr(estimate, entry.name)[:: branches.per_slice] for entry in fields(estimate))
            return Estimate(*map(branches.expand, firsts))
        self.are_equal, self._steering = False, {}
        self._note(self._wishes)
        is_expected = [bool(step.guidance) and is_pushed for is_pushed in self._is_pushed]
        self._estimate_plainly(estimate, noisy, [k for k in every if not is_expected[k]], step)
        if step.guidance:
            looked_at, self._wishes = self._wishes, []
            self._estimate_and_push(estimate, noisy, [k for k in every if is_expected[k]], step)
            self._note(looked_at)  # the device computes the pushed images meanwhile
            joining = [k for k in every if self._is_pushed[k] and not is_expected[k]]
            self._estimate_and_push(estimate, noisy, joining, step)
            self._push_jointly(estimate, step)
        return estimate

    def check_networks(self) -> None:
        """Wait for the device, refuse what the networks returned if it is not finite, and warn of a wrong scale.

        Raises:
            ValueError: a network returned NaN or infinity.
        """
        self._watch.finish()
        self._scale_watch.warn()

    def finish(
        self, x0: Channels, method: str
    ) -> tuple[
        Complex[Tensor, "slice class target y x"],
        Float[Tensor, "slice class target"],
        UInt8[Tensor, "slice class target y x"] | None,
    ]:
        """Make the clean images of the last step agree with the measurement in full, and segment them.

        Args:
            x0: clean images.
            method: one of `mri.consistency.FINAL_CONSISTENCY`.

        Returns:
            Images in the scale of the prior, their data residual, and their labels (`None` without a segmentation
            model).

        Raises:
            ValueError: an image or the output of a network is not finite.
        """
        branches, images, residuals, labels = self._branches, [], [], []
        for batch in batches(list(range(len(branches))), self._batch_size):
            selected = self._select(batch)
            image, residual = self._problem.finish(x0[selected.index], selected.slices, method)
            if not residual.isfinite().all():
                raise ValueError(
                    "the reconstruction is not finite in single precision. Check the scale of `kspace` and "
                    "`coil_maps`, and what callbacks and `guidance` do."
                )
            images.append(image)
            residuals.append(residual)
            if self._segmentation_model is not None:
                labels.append(self._segment(image).argmax(dim=1).to(torch.uint8))
        self.check_networks()
        segmentations = branches.unflatten(torch.cat(labels)) if labels else None
        return branches.unflatten(torch.cat(images)), branches.unflatten(torch.cat(residuals)), segmentations

    def _select(self, images: list[int]) -> Selection:
        """Look up the numbered images; what was looked up before is on the device already."""
        key = tuple(images)
        if key not in self._selections:
            self._selections[key] = self._branches.select(images, self._problem.kspace.device)
        return self._selections[key]

    def _predict(self, noisy: Channels, step: Step) -> Channels:
        """Return the output of the prior for noisy images, which it sees changed by the symmetry of the step."""
        return step.symmetry.undo(predict(self._unet, step.symmetry.apply(noisy), step.timestep, self._watch))

    def _segment(self, images: Complex[Tensor, "image y x"]) -> Float[Tensor, "image out_class y x"]:
        """Return the logits of the segmentation model, which there is, or the call was refused."""
        assert self._segmentation_model is not None
        return segment(self._segmentation_model, images, size_multiple(self._unet), self._watch)

    def _estimate_plainly(self, estimate: Estimate, noisy: Channels, images: list[int], step: Step) -> None:
        """Fill in the estimate of the numbered images without a graph, and ask which of them want a push."""
        for batch in batches(images, self._step_batch_size):
            selected = self._select(batch)
            some = noisy[selected.index]
            part = self._denoise(some, self._predict(some, step), selected, step)
            estimate.put(selected, part)
            if step.guidance:
                self._ask_wishes(self._guidance_inputs(some, part, selected, step), batch, step)

    def _estimate_and_push(self, estimate: Estimate, noisy: Channels, images: list[int], step: Step) -> None:
        """Fill in the estimate of the numbered images, with the push of all guidance of the step."""
        for batch in batches(images, self._step_batch_size):
            selected = self._select(batch)
            with torch.enable_grad():
                gradient_of = TwoStageGradient(lambda start: self._predict(start, step), noisy[selected.index])
                part = self._denoise(gradient_of.noisy, gradient_of.output, selected, step)
                tensors = self._guidance_inputs(gradient_of.noisy, part, selected, step)
                wishes = self._ask_wishes(tensors, batch, step)[:, None, None, None]
                for k, (guidance, strength) in enumerate(step.guidance):
                    score = guidance.score(**{name: tensors[name] for name in guidance.tensor_inputs})  # Eq. 12
                    gradient = gradient_of(score, keep_graph=k + 1 < len(step.guidance))
                    gradient = torch.where(wishes, gradient, 0.0)
                    if k in self._steering:
                        self._steering[k].gradient[selected.index] = gradient
                        continue
                    gamma = guidance_weight(part.eps.detach(), gradient, strength)  # Eq. 14
                    part.push.add_(gamma[:, None, None, None] * gradient)
            estimate.put(selected, part)

    def _push_jointly(self, estimate: Estimate, step: Step) -> None:
        """Add the pushes of guidance that has a volume for all slices to reach."""
        branches = self._branches
        for k, steering in self._steering.items():
            guidance, strength = step.guidance[k]
            measured = branches.unflatten(steering.measured)  # slice, class, target
            shares = guidance.push_shares(measured, branches.class_numbers, branches.targets)
            eps, gradient = branches.unflatten(estimate.eps), branches.unflatten(steering.gradient)
            weights = joint_weights(eps, gradient, strength)
            estimate.push.add_((shares * weights).expand_as(measured).reshape(-1, 1, 1, 1) * steering.gradient)

    def _denoise(self, noisy: Channels, output: Channels, selected: Selection, step: Step) -> Estimate:
        """Estimate some images from the output of the prior, without a push."""
        x0, eps = step.level.denoise(output, noisy)  # Eq. 4
        x0_consistent = self._problem.make_consistent(x0, selected.slices, step.level, step.n_iterations)  # Eq. 5
        return Estimate(output, x0, eps, x0_consistent, torch.zeros_like(noisy))

    def _guidance_inputs(
        self, noisy: Channels, estimate: Estimate, selected: Selection, step: Step
    ) -> dict[str, Tensor]:
        """Return the tensors that guidance may ask for, by the names in `SGRMRIPipeline._guidance_tensor_inputs`."""
        tensors = {"noisy": noisy, "eps": estimate.eps, "x0": estimate.x0, "x0_consistent": estimate.x0_consistent}
        if any("logits" in guidance.tensor_inputs for guidance, _ in step.guidance):
            tensors["logits"] = self._segment(channels_to_complex(estimate.x0_consistent))
        names = "class_number", "is_upper", "slice_number"
        return tensors | {name: getattr(selected, name) for name in names}

    def _ask_wishes(self, tensors: dict[str, Tensor], images: list[int], step: Step) -> Bool[Tensor, " image"]:
        """Ask for, and return, which of the numbered images any guidance wants to push; measure what it needs."""
        wishes = images_to_push([guidance for guidance, _ in step.guidance], tensors)
        self._wishes.append((images, LateFlags(wishes)))
        for k, (guidance, _) in enumerate(step.guidance):
            with torch.no_grad():
                measured = guidance.measure(**{name: tensors[name] for name in guidance.tensor_inputs})
            if measured is not None:
                self._steer(k, tensors["noisy"]).measured[self._select(images).index] = measured
        return wishes

    def _note(self, wishes: list[tuple[list[int], LateFlags]]) -> None:
        """Note which images are to be pushed, and empty the list."""
        for images, flags in wishes:
            for image, is_pushed in zip(images, flags.tolist(), strict=True):
                self._is_pushed[image] = is_pushed
        wishes.clear()

    def _steer(self, k: int, noisy: Channels) -> Steering:
        """Return what guidance number `k` has found in this step, at first zeros."""
        if k not in self._steering:
            n_images = len(self._branches)
            shape = n_images, *noisy.shape[1:]
            self._steering[k] = Steering(noisy.new_zeros(n_images), noisy.new_zeros(shape))
        return self._steering[k]
