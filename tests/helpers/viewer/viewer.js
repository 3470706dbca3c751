// Loads DICOM as OHIF does, by Cornerstone3D, and hands pixels and geometry to the test.
import { init as initCore, imageLoader, metaData } from '@cornerstonejs/core';
import { init as initLoader } from '@cornerstonejs/dicom-image-loader';
import { adaptersSEG } from '@cornerstonejs/adapters';

// The SEG adapter looks for the UID of an image where OHIF's metadata have it.
const metadataProvider = {
  get: (type, id) => {
    const values = metaData.get(type, id);
    const { sopInstanceUID } = metaData.get('sopCommonModule', id) ?? {};
    return type === 'generalImageModule' ? { ...values, sopInstanceUID } : values;
  },
};

const load = async (url) => {
  const id = `wadouri:${url}`;
  const image = await imageLoader.loadAndCacheImage(id);
  return { id, plane: metaData.get('imagePlaneModule', id), pixels: Array.from(image.getPixelData()) };
};

window.show = async (imageUrls, sourceUrls, segmentationUrl) => {
  await initCore();
  initLoader({ maxWebWorkers: 1 });
  const images = [];
  const sources = [];
  for (const url of imageUrls) images.push(await load(url));
  for (const url of sourceUrls) sources.push(await load(url));
  const buffer = await (await fetch(segmentationUrl)).arrayBuffer();
  const ids = sources.map((source) => source.id);
  const segmentation = await adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer(ids, buffer, {
    metadataProvider,
  });
  // Segments that overlap come in several groups of label maps.
  const labelMaps = segmentation.labelMapImages.flat().map((map) => ({
    source: map.referencedImageId,
    pixels: Array.from(map.voxelManager.getScalarData()),
  }));
  const names = segmentation.segMetadata.data.filter(Boolean).map((segment) => segment.SegmentLabel);
  return { images, sources, labelMaps, names };
};
