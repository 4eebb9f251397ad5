// Pictures as the Worker sends them, {width, height, data} or a Blob, on a canvas and as a file.

export async function paint(canvas, picture) {
  const source = picture instanceof Blob ? await createImageBitmap(picture) : asImageData(picture);
  canvas.width = source.width;
  canvas.height = source.height;
  const context = canvas.getContext("2d");
  if (source instanceof ImageData) context.putImageData(source, 0, 0);
  else context.drawImage(source, 0, 0);
}

const asImageData = ({ data, width, height }) =>
  new ImageData(new Uint8ClampedArray(data), width, height);

export async function savePicture(picture, name) {
  const canvas = document.createElement("canvas");
  await paint(canvas, picture);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000); // after the browser has read it
}
